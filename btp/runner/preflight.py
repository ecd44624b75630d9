"""Checks of the composed config that need neither a model nor torch."""

import os
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse a config that cannot run, before anything is written.

    Raises:
        ValueError: what was asked, and the key to change.
        OSError: the output folder cannot be written.
    """
    _whole("stages", config["stages"], 1, "A calibrated or uniform schedule needs 1 stage or more.")
    if config["limit"] is not None:
        _whole("limit", config["limit"], 1, "No samples are left to run.")
    _whole("calibration.samples", config["calibration"]["samples"], 1, "There is nothing to calibrate on.")
    _whole("trainer.batch", config["trainer"]["batch"], 1, "")
    for key in ("repeats", "output_tokens"):
        _whole(f"cost.{key}", config["cost"][key], 2, "")
    _budget(config["budget"]["tokens"], config["budget"]["share"])
    for key in ("move", "nearest"):
        _switch(f"budget.{key}", config["budget"][key])
    _switch("cache", config["cache"])
    _model(config["model"])
    _writable(Path(config["output"]))


def _whole(key: str, value: object, least: int, why: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{key} is {value!r}. {why} Set {key} to a whole number from {least} on.".replace("  ", " "))


def _switch(key: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{key} is {value!r}. Set {key} to true or false.")


def _budget(tokens: object, share: object) -> None:
    if tokens is not None and share is not None:
        raise ValueError(
            f"budget.tokens is {tokens} and budget.share is {share}, but a run has one budget. "
            "Set the one that you do not mean to null."
        )
    if share is not None and not (isinstance(share, Real) and 0 < share <= 1):
        raise ValueError(
            f"budget.share is {share!r}, but it is the share of visual tokens that stays on average over the "
            "layers. Set budget.share to a number above 0 and at most 1."
        )
    if tokens is not None and not (isinstance(tokens, Real) and tokens > 0):
        raise ValueError(f"budget.tokens is {tokens!r}. Set budget.tokens to a number above 0.")


def _model(model: Mapping[str, Any]) -> None:
    for key, known in {
        "weights": ("pretrained", "random"),
        "dtype": ("float32", "bfloat16", "float16", "float64"),
        "attention": ("sdpa", "eager"),
    }.items():
        if model[key] not in known:
            raise ValueError(f"model.{key} is {model[key]!r}. Choose from: {', '.join(known)}.")


def _writable(folder: Path) -> None:
    """Make the output folder, or say why that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(
            f"cannot write to the output folder {folder}: {error.strerror}. Set output to another one."
        ) from None
