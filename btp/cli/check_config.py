"""Checks of the composed config that need neither a model nor torch."""

import os
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from btp.models.loading.checkpoint import check_keys, find_checkpoint
from btp.runner.lmms_eval.settings import check_tasks
from btp.runner.model_yamls import check_family
from btp.runner.workers.ranks import devices
from btp.tasks.shown import NO_NAME, is_name, short


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
    if config["trainer"]["workers"] is not None:
        _whole("trainer.workers", config["trainer"]["workers"], 0, "")
    _devices(config["trainer"], config["model"])
    for key in ("repeats", "output_tokens"):
        _whole(f"cost.{key}", config["cost"][key], 2, "")
    _measured(config["cost"]["measure"], config["model"]["weights"])
    _budget(config["budget"]["tokens"], config["budget"]["share"])
    for key in ("move", "nearest"):
        _switch(f"budget.{key}", config["budget"][key])
    _switch("cache", config["cache"])
    if not isinstance(config["cache_gib"], Real) or isinstance(config["cache_gib"], bool) or config["cache_gib"] <= 0:
        raise ValueError(
            f"cache_gib is {config['cache_gib']!r}. Set cache_gib to a number of GiB above 0; cache=off keeps none."
        )
    check_tasks(config)
    _names(config)
    _model(config["model"])
    _calibrated(config)
    _writable(Path(config["output"]))


def _names(config: Mapping[str, Any]) -> None:
    """Run folders are called by them."""
    for group in ("model", "pruner", "task", "calibration"):
        name = config[group]["name"]
        if not is_name(name):
            raise ValueError(f"{group}.name is {short(repr(name))}, {NO_NAME}. Correct {group}.name.")


def _calibrated(config: Mapping[str, Any]) -> None:
    """Refuse to calibrate a model without weights before it is built."""
    pruner, kind = config["pruner"], config["schedule"]["kind"]
    asks = pruner["name"] != "none" and any(
        kind == "calibrated" or (kind == "auto" and part["schedule"] is None)
        for part in (pruner.get("parts") or {"": pruner}).values()
    )
    if asks and config["model"]["weights"] == "random":
        raise ValueError(
            "A calibrated schedule needs a model with weights, but model.weights is random. Choose schedule=uniform or "
            "schedule=paper."
        )


def _whole(key: str, value: object, least: int, why: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{key} is {value!r}. {why} Set {key} to a whole number from {least} on.".replace("  ", " "))


def _switch(key: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{key} is {value!r}. Set {key} to true or false.")


def _measured(value: object, weights: object) -> None:
    if value != "auto" and not isinstance(value, bool):
        raise ValueError(f"cost.measure is {value!r}. Choose from: auto, true, false.")
    if value != "auto" and weights != "random":
        raise ValueError(
            f"cost.measure is {str(value).lower()}, which has an effect on a model without weights only "
            "(model.weights=random). With weights, cost.enabled says whether costs are measured."
        )


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


def _devices(trainer: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    asked = len(devices(trainer))
    if asked > 1 and model["device_map"] is not None:
        raise ValueError(
            f"trainer.devices asks for {asked} processes with a model each, but model.device_map is "
            f"{model['device_map']!r}, which spreads one model over devices. Set trainer.devices=1 or "
            "model.device_map=null."
        )


def _model(model: Mapping[str, Any]) -> None:
    for key, known in {
        "weights": ("pretrained", "random"),
        "dtype": ("float32", "bfloat16", "float16", "float64"),
        "attention": ("sdpa", "eager"),
        "quantize": (None, "8bit", "4bit"),
    }.items():
        if model[key] not in known:
            raise ValueError(f"model.{key} is {model[key]!r}. Choose from: {', '.join(k or 'null' for k in known)}.")
    for key in ("trust_remote_code", "download"):
        _switch(f"model.{key}", model[key])
    check_keys(model)
    if model["path"] is not None:
        check_family(model, find_checkpoint(model))


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
