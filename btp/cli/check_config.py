"""Checks of the composed config that need neither a model nor torch."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from btp.cli.unused_overrides import calibrates, parts_of
from btp.cli.values import check_values
from btp.models.loading.checkpoint import check_keys, find_checkpoint, read_config
from btp.runner.harness.settings import check_tasks
from btp.runner.model_yamls import check_family
from btp.runner.workers.ranks import devices
from btp.tasks.shown import NO_NAME, is_name, short


def settled(config: Mapping[str, Any], words: Iterable[str]) -> dict[str, Any]:
    """A resolved config in which words of the command line stand for what they mean.

    The default share gives way to `budget.tokens`, and `cache=off` is false.

    Args:
        words: Words as they were typed.
    """
    found, budget = dict(config), config.get("budget")
    shared = any(word.startswith("budget.share=") for word in words)
    if isinstance(budget, Mapping) and budget.get("tokens") is not None and not shared:
        found["budget"] = {**budget, "share": None}
    if found.get("cache") in ("on", "off"):
        found["cache"] = found["cache"] == "on"
    return found


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse a config that cannot run, before anything is written.

    Raises:
        ValueError: what was asked, and the key to change.
        OSError: the output folder cannot be written.
    """
    check_values(config)
    _devices(config["trainer"], config["model"])
    _measured(config["cost"]["measure"], config["model"]["weights"])
    _budget(config["budget"]["tokens"], config["budget"]["share"])
    check_tasks(config)
    _names(config)
    _model(config["model"])
    _layers(config)
    _calibrated(config)
    _trains(config)
    _writable(Path(config["output"]))


def _names(config: Mapping[str, Any]) -> None:
    """Run folders are called by them."""
    for group in ("model", "pruner", "task", "calibration"):
        name = config[group]["name"]
        if not is_name(name):
            raise ValueError(f"{group}.name is {short(repr(name))}, {NO_NAME}. Correct {group}.name.")


def _calibrated(config: Mapping[str, Any]) -> None:
    """Refuse to calibrate a model without weights before it is built."""
    if calibrates(config) and config["model"]["weights"] == "random":
        raise ValueError(
            "A calibrated schedule needs a model with weights, but model.weights is random. Choose schedule=uniform or "
            "schedule=paper."
        )


def _trains(config: Mapping[str, Any]) -> None:
    """Refuse action=train where there is nothing to train, or nothing to train it with."""
    if config.get("action") != "train":
        return
    pruner, host = config["pruner"], config["training"]["train"] == "host"
    if host and pruner["name"] == "none":
        raise ValueError("training.train is host, but pruner=none prunes nothing. Choose the pruner to train with.")
    if not host and "weights" not in pruner:
        raise ValueError(
            f"action is train, but pruner {pruner['name']!r} has nothing to train. Choose one with modules of its own, "
            "whose yaml has `weights`, as pruner=lvpruning or pruner=bavit, or train the model with it on: "
            "training.train=host."
        )
    if not host and pruner["weights"] != "auto":
        raise ValueError(
            f"action is train, but pruner.weights is {pruner['weights']!r}, which takes modules as they are. Set "
            "pruner.weights=auto."
        )
    if config["model"]["weights"] == "random":
        raise ValueError(
            "action is train, but model.weights is random: modules are trained with a model that answers. Set "
            "model.weights=pretrained."
        )


def _layers(config: Mapping[str, Any]) -> None:
    """Refuse a pruner's layer that the model does not have, as far as its config says how many it has."""
    pruner, depth = config["pruner"], _depth(config["model"])
    for name, part in parts_of(pruner).items():
        key = f"pruner.parts.{name}" if pruner.get("parts") else "pruner"
        layer = part.get("layer")
        if layer == "search" and "search" not in part:
            raise ValueError(
                f"{key}.layer is search, but pruner {part['name']!r} has no search. Set {key}.layer to a layer."
            )
        if isinstance(layer, int) and depth is not None and layer >= depth:
            raise ValueError(
                f"{key}.layer is {layer}, but the model has {depth} decoder layers. Set {key}.layer to a layer from 0 "
                f"to {depth - 1}."
            )


def _depth(model: Mapping[str, Any]) -> int | None:
    """Decoder layers of a model, without loading it; None where no file says so."""
    folder = find_checkpoint(model) if model["path"] is not None else None
    found = read_config(folder) if folder is not None else model["config"] or {}
    text = found.get("text_config") or found
    depth = text.get("num_hidden_layers") if isinstance(text, Mapping) else None
    return depth if isinstance(depth, int) else None


def _measured(value: object, weights: object) -> None:
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


def _devices(trainer: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    asked = len(devices(trainer))
    if asked > 1 and model["device_map"] is not None:
        raise ValueError(
            f"trainer.devices asks for {asked} processes with a model each, but model.device_map is "
            f"{model['device_map']!r}, which spreads one model over devices. Set trainer.devices=1 or "
            "model.device_map=null."
        )


def _model(model: Mapping[str, Any]) -> None:
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
