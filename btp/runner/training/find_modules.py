"""Which modules a run's pruner takes: named ones, found ones, shipped ones, or such as are trained now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from btp.models.loading.checkpoint import EMBEDDED
from btp.models.loading.load import Loaded
from btp.pruners.bavit import SHAPE
from btp.pruners.trained_folder import CARD, read_card
from btp.runner.devices import Machine
from btp.runner.identity import pictures
from btp.runner.training.module_training import CLASSIFIER, module_training
from btp.runner.training.train import AFTERWARDS, describe_card

AUTO, NONE = "auto", "none"
SHIPPED = EMBEDDED / "checkpoints" / "modules"  # a folder for each pruner and model
FREE = ("seed", *AFTERWARDS)  # how modules begin, what is done with them


def with_modules(
    config: Mapping[str, Any],
    loaded: Loaded,
    checkpoint: str,
    store: Path,
    machine: Machine,
    pruner: Mapping[str, Any],
    shipped: Path = SHIPPED,
    train: bool = True,
) -> Mapping[str, Any]:
    """A pruner's config with the folder of its modules and their digest in `method`.

    Args:
        config: Config of the run, resolved.
        checkpoint: identity of the model.
        store: Folder of the artifacts that runs share.
        pruner: Pruner with `weights`: auto, none, or a folder.
        train: train modules that are nowhere.

    Raises:
        ValueError: the modules named are of another model or method, or a training fails.
    """
    asked = pruner["weights"]
    if asked == NONE or config["model"]["weights"] == "random" or "digest" in pruner["method"]:  # the last: has them
        return pruner
    model = model_of(loaded, checkpoint)
    folder = Path(asked)
    if asked == AUTO:
        where = (config, loaded, checkpoint, store, machine, pruner)
        folder = shipped_for(pruner, model, shipped) or _found(*where, train)
    card = read_card(folder)
    if (other := _other(card, model)) is not None:
        host = card.get("host") or {}
        raise ValueError(
            f"the modules in {folder} were trained with model {host.get('name')!r} ({other} {host.get(other)}), but "
            f"this run's {other} is {model[other]}. Set pruner.weights=auto, which trains some for this model, or name "
            "others."
        )
    return {**pruner, "method": {**pruner["method"], "weights": str(folder), "digest": card["digest"]}}


def model_of(loaded: Loaded, checkpoint: str) -> dict[str, str | None]:
    """What modules can be bound to: the model's weights, or no more than the pictures that it is shown."""
    return {"checkpoint": checkpoint, "pictures": pictures(loaded.processor, loaded.host.model.config)}


def shipped_for(pruner: Mapping[str, Any], model: Mapping[str, Any], shipped: Path = SHIPPED) -> Path | None:
    """Modules that came with the project for this model and these settings; None without."""
    for card_file in sorted(shipped.glob(f"*/{CARD}")):
        card = read_card(card_file.parent)
        if _other(card, model) is None and _same(pruner["method"], card["method"]):
            return card_file.parent
    return None


def _other(card: Mapping[str, Any], model: Mapping[str, Any]) -> str | None:
    """What of a model modules were bound to and find otherwise; None where they go with it."""
    host = card.get("host") or {}
    bound = [key for key in ("checkpoint", "pictures") if key in host] or ["checkpoint"]
    return next((key for key in bound if host.get(key) != model.get(key)), None)


def _same(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether modules were trained with these settings. Null in BAViT's shape takes what the classifier has."""
    taken = [key for key in SHAPE if ours.get(key) is None] if ours.get("_target_") == CLASSIFIER else []
    return all(ours.get(k) == theirs.get(k) for k in {*ours, *theirs} if k not in (*FREE, *taken))


def _found(
    config: Mapping[str, Any],
    loaded: Loaded,
    checkpoint: str,
    store: Path,
    machine: Machine,
    pruner: Mapping[str, Any],
    train: bool,
) -> Path:
    if config["training"]["train"] == "host":
        raise ValueError(
            f"training.train is host, which trains a model and not the modules of pruner {pruner['name']}, and it has "
            "none for this model yet. Train them first (the same command with training.train=modules and a rate for "
            "them), and name their folder in pruner.weights."
        )
    training = module_training(config, loaded, checkpoint, store, machine, pruner)
    there = machine.agree(training.finished and config["resume"])
    if not (there or train):
        raise ValueError(f"the modules of pruner {pruner['name']} are gone from {store}. Run the run's command again.")
    if machine.leads and not there:
        print(
            f"pruner {pruner['name']} has no modules for this model yet: they are trained now, "
            f"{training.settings['steps']} steps of {training.settings['batch']} (pruner.weights=none does without)",
            flush=True,
        )
    folder = training.go()
    if machine.leads and not there:
        print(describe_card(folder), flush=True)
    return folder
