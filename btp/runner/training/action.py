"""`action=train`: trains the modules of the run's pruner, or the model with the pruner on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from btp.models.loading.load import Loaded
from btp.runner.devices import Machine
from btp.runner.tracking.tracker import tracker_of
from btp.runner.training.module_training import module_training
from btp.runner.training.sparse_finetuning import HostTraining
from btp.runner.training.train import describe_card


def train(config: Mapping[str, Any], loaded: Loaded, checkpoint: str, store: Path, machine: Machine) -> None:
    """Train, or find what is finished; say where it lies, and log its curves.

    Args:
        config: Config of the run, resolved.
        checkpoint: identity of the model.
        store: Folder of the artifacts that runs share.
    """
    make = HostTraining if config["training"]["train"] == "host" else module_training
    folder = make(config, loaded, checkpoint, store, machine, config["pruner"]).go()
    if machine.leads:
        print(describe_card(folder), flush=True)
        tracker_of(config["logger"]).log_training(config, folder)
