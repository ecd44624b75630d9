"""What a config says of tasks of lm-eval. No torch here, nor lm-eval itself, so that errors come at once."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from btp.runner.harness.settings import check_folder, check_names

NAME = "lm_eval"


def check_tasks(config: Mapping[str, Any]) -> None:
    """Refuse a run whose tasks cannot be asked for.

    Args:
        config: resolved.

    Raises:
        ValueError: no names, a folder that is not there, or lm-eval is not installed.
    """
    if config["task"]["name"] != NAME:
        return
    check_names(config.get("tasks"), NAME, "[hellaswag,arc_easy]")
    check_folder(config["task"]["dataset"]["include_path"])
    check_installed()


def check_installed() -> None:
    """Refuse an environment without lm-eval.

    Raises:
        ValueError: says what to run.
    """
    if find_spec("lm_eval") is None:
        raise ValueError(
            "task=lm_eval needs lm-eval, which this environment does not have. It is an extra with an environment of "
            "its own: run `make setup-lm`, then the same command with .venv-lm/bin/python in place of python."
        )
