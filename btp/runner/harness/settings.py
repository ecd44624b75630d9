"""What a config says of tasks of lmms-eval. No torch here, nor lmms-eval itself, so that errors come at once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from btp.runner.identity import digest

NAME, LIBRARY = "lmms_eval", "lmms-eval"
LIBRARIES = {NAME: LIBRARY, "lm_eval": "lm-eval"}  # harnesses, by the task that asks through them
LARGEST = 64 << 20  # bytes of a file up to which all of it is read to see whether it changed
SOURCES = (".yaml", ".yml", ".py", ".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet")


def check_tasks(config: Mapping[str, Any]) -> None:
    """Refuse a run whose tasks cannot be asked for.

    Args:
        config: resolved.

    Raises:
        ValueError: tasks without task=lmms_eval or the other way round, a folder that is not there, or lmms-eval is
            not installed.
    """
    asked, chosen = config.get("tasks"), config["task"]["name"]
    if chosen not in LIBRARIES:
        if asked is not None:
            raise ValueError(
                f"tasks={asked} has no effect with task={chosen}: it names tasks of lmms-eval. "
                f"Set task={NAME} (or task=lm_eval for those of lm-eval), or drop it."
            )
        return
    if chosen != NAME:
        return
    check_names(asked)
    check_folder(config["task"]["dataset"]["include_path"])
    check_installed()


def check_names(asked: object, task: str = NAME, example: str = "[gqa,mme,pope]") -> None:
    """Refuse anything but a list of names.

    Args:
        task: that asks for them, and what one writes, for the message.

    Raises:
        ValueError: says how to write it.
    """
    names = [asked] if isinstance(asked, str) else asked
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"tasks is {asked!r}, but task={task} needs names of {LIBRARIES[task]}'s tasks. Set tasks={example}."
        )


def check_folder(include_path: object) -> None:
    """Refuse a folder of local tasks that is not there.

    Raises:
        ValueError: names it.
    """
    if include_path is not None and not Path(str(include_path)).is_dir():
        raise ValueError(
            f"task.dataset.include_path is {include_path}, but there is no such folder. Set it to the folder that "
            "holds the yamls of your tasks, or to null."
        )


def check_installed() -> None:
    """Refuse an environment without lmms-eval.

    Raises:
        ValueError: says what to run.
    """
    if find_spec("lmms_eval") is None:
        raise ValueError(
            "task=lmms_eval needs lmms-eval, which this environment does not have. It is an extra with an environment "
            "of its own: run `make setup-lmms`, then the same command with .venv-lmms/bin/python in place of python."
        )


def shared_part(task: Mapping[str, Any]) -> Any:
    """What of a task's config, and of what it points at, changes an answer. Which tasks are asked does not: their names
    are part of each sample's.
    """
    node = {key: value for key, value in task.items() if key != "reading"}
    if task["name"] not in LIBRARIES:
        return node
    node["dataset"] = {key: value for key, value in task["dataset"].items() if key not in ("tasks", "include_path")}
    try:
        found = version(LIBRARIES[task["name"]])
    except PackageNotFoundError:
        found = None
    return [node, found, _files(task["dataset"]["include_path"])]


def _files(folder: str | None) -> str:
    """A hash of the files of local tasks: text and tables by content, anything else (pictures) by name and size."""
    if folder is None:
        return ""
    found = []
    root = Path(folder)
    for file in sorted(path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        size = file.stat().st_size
        whole = file.suffix in SOURCES and size <= LARGEST
        found.append(
            (str(file.relative_to(root)), size, hashlib.sha256(file.read_bytes()).hexdigest() if whole else "")
        )
    return digest(found)
