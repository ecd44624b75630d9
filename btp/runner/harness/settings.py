"""Checks of a config whose task is a harness's. No torch here, nor a harness itself, so that errors come at once."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from btp.runner.identity import digest


@dataclass(frozen=True)
class Library:
    """A harness that brings tasks.

    Attributes:
        name: Name of its distribution.
        example: Tasks as one asks for them.
        listing: Its command that lists all tasks.
        setup: Name of its make target and of its environment.
    """

    name: str
    example: str
    listing: str
    setup: str


LIBRARIES = {  # by the name of our task, which is that of the harness's package, too
    "lmms_eval": Library("lmms-eval", "[gqa,mme,pope]", "lmms-eval tasks list", "lmms"),
    "lm_eval": Library("lm-eval", "[hellaswag,arc_easy]", "lm-eval ls tasks", "lm"),
}
LARGEST = 64 << 20  # bytes of a file up to which all of it is read to see whether it changed
SOURCES = (".yaml", ".yml", ".py", ".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet")


def check_tasks(config: Mapping[str, Any]) -> None:
    """Refuse a run whose tasks cannot be asked for.

    Args:
        config: Config of a run, resolved.

    Raises:
        ValueError: tasks for a task that is no harness's, or what `check_asked` refuses.
    """
    asked, chosen = config.get("tasks"), config["task"]["name"]
    if chosen in LIBRARIES:
        check_asked(chosen, asked, config["task"]["dataset"]["include_path"])
    elif asked is not None:
        raise ValueError(
            f"tasks={asked} has no effect with task={chosen}: it names tasks of lmms-eval. "
            "Set task=lmms_eval (or task=lm_eval for those of lm-eval), or drop it."
        )


def check_asked(task: str, asked: object, include_path: object) -> None:
    """Refuse names, a folder or an environment that a harness can do nothing with.

    Args:
        task: Name of our task, a key of `LIBRARIES`.
        asked: Names of the harness's tasks.
        include_path: Folder of local tasks; None for none.

    Raises:
        ValueError: no list of names, a folder that is not there, or the harness is not installed.
    """
    library, names = LIBRARIES[task], [asked] if isinstance(asked, str) else asked
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"tasks is {asked!r}, but task={task} needs names of {library.name}'s tasks. Set tasks={library.example}."
        )
    if include_path is not None and not Path(str(include_path)).is_dir():
        raise ValueError(
            f"task.dataset.include_path is {include_path}, but there is no such folder. Set it to the folder that "
            "holds the yamls of your tasks, or to null."
        )
    if find_spec(task) is None:
        raise ValueError(
            f"task={task} needs {library.name}, which this environment does not have. It is an extra with an "
            f"environment of its own: run `make setup-{library.setup}`, then the same command with "
            f".venv-{library.setup}/bin/python in place of python."
        )


def check_known(task: str, names: Sequence[str], known: Sequence[str], include_path: str | None) -> None:
    """Refuse names that a harness has no task for.

    Raises:
        ValueError: the first unknown name, with the nearest ones.
    """
    library = LIBRARIES[task]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            where = "" if include_path is None else f", nor has the folder {include_path} one"
            raise ValueError(
                f"tasks names {name}, but {library.name} has no such task{where}.{hint} `{library.listing}` shows all; "
                "task.dataset.include_path=FOLDER adds your own."
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
        found = version(LIBRARIES[task["name"]].name)
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
