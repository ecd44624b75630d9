"""Which modules a run's pruner takes: named ones, found ones, shipped ones, or such as are trained now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from btp.models.loading.checkpoint import EMBEDDED
from btp.models.loading.load import Loaded
from btp.pruners.trained_folder import CARD, read_card
from btp.runner.devices import Machine
from btp.runner.training.module_training import module_training
from btp.runner.training.train import describe_card

AUTO, NONE = "auto", "none"
SHIPPED = EMBEDDED / "checkpoints" / "modules"  # a folder for each pruner and model
LEARNED = ("seed",)  # settings of a method that only say how modules begin


def with_modules(
    config: Mapping[str, Any],
    loaded: Loaded,
    checkpoint: str,
    store: Path,
    machine: Machine,
    pruner: Mapping[str, Any],
    shipped: Path = SHIPPED,
) -> Mapping[str, Any]:
    """A pruner's config with the folder of its modules and their digest in `method`.

    Args:
        config: Config of the run, resolved.
        checkpoint: identity of the model.
        store: Folder of the artifacts that runs share.
        pruner: Pruner with `weights`: auto, none, or a folder.

    Raises:
        ValueError: the modules named are of another model or method, or a training fails.
    """
    asked = pruner["weights"]
    if asked == NONE or config["model"]["weights"] == "random":
        return pruner
    folder = Path(asked)
    if asked == AUTO:
        folder = shipped_for(pruner, checkpoint, shipped) or _found(config, loaded, checkpoint, store, machine, pruner)
    card = read_card(folder)
    host = card.get("host") or {}
    if host.get("checkpoint") != checkpoint:
        raise ValueError(
            f"the modules in {folder} were trained with model {host.get('name')!r} (checkpoint "
            f"{host.get('checkpoint')}), but this run's checkpoint is {checkpoint}. Set pruner.weights=auto, which "
            "trains some for this model, or name others."
        )
    return {**pruner, "method": {**pruner["method"], "weights": str(folder), "digest": card["digest"]}}


def shipped_for(pruner: Mapping[str, Any], checkpoint: str, shipped: Path = SHIPPED) -> Path | None:
    """Modules that came with the project for this model and these settings; None without."""
    for card_file in sorted(shipped.glob(f"*/{CARD}")):
        card = read_card(card_file.parent)
        ours, theirs = ({k: v for k, v in m.items() if k not in LEARNED} for m in (pruner["method"], card["method"]))
        if (card.get("host") or {}).get("checkpoint") == checkpoint and _same(ours, theirs):
            return card_file.parent
    return None


def _same(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Settings that modules have to be trained with; how many tokens stay is free behind it."""
    free = ("count",)
    return all(ours.get(k) == theirs.get(k) for k in {*ours, *theirs} if k not in free)


def _found(
    config: Mapping[str, Any],
    loaded: Loaded,
    checkpoint: str,
    store: Path,
    machine: Machine,
    pruner: Mapping[str, Any],
) -> Path:
    training = module_training(config, loaded, checkpoint, store, machine, pruner)
    there = machine.agree(training.finished and config["resume"])
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
