"""Where a run computes: devices, threads, precision of the clock, progress bars."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm


class Bar(TQDMProgressBar):
    """A progress bar that says which phase it is."""

    def __init__(self, phase: str):
        super().__init__(leave=True)
        self.phase = phase

    @property
    def test_description(self) -> str:
        """Lightning asks for it at the start of a test."""
        return f"{self.phase:24}"

    @property
    def predict_description(self) -> str:
        """Lightning asks for it at the start of a prediction."""
        return f"{self.phase:24}"

    def init_test_tqdm(self) -> Tqdm:
        """The bar of a test; plain text, so that logs stay readable."""
        return _plain(super().init_test_tqdm())

    def init_predict_tqdm(self) -> Tqdm:
        """The bar of a prediction."""
        return _plain(super().init_predict_tqdm())


def _plain(bar: Tqdm) -> Tqdm:
    bar.bar_format = "{desc} {percentage:3.0f}%|{bar:28}| {n_fmt}/{total_fmt} batches, {elapsed}, {remaining} left"
    return bar


class Machine:
    """Trainers for the phases of one run.

    Args:
        config: the trainer group's keys.
        folder: Lightning's root.
    """

    def __init__(self, config: Mapping[str, Any], folder: Path):
        self.config, self.folder = config, folder
        self.batch, self.workers = config["batch"], config["workers"]
        if config["threads"]:
            torch.set_num_threads(config["threads"])
        quiet()
        self._probe = self.trainer("probe")
        self.device = self._probe.strategy.root_device

    @property
    def rank(self) -> int:
        """Of this process."""
        return self._probe.global_rank

    @property
    def world(self) -> int:
        """Processes."""
        return self._probe.world_size

    @property
    def leads(self) -> bool:
        """True in the process that writes what all found."""
        return self.rank == 0

    def trainer(self, phase: str) -> L.Trainer:
        """A trainer for one phase, with its own bar."""
        return L.Trainer(
            accelerator=self.config["accelerator"],
            devices=self.config["devices"],
            strategy="ddp" if self.config["devices"] not in (1, "1") else "auto",
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            callbacks=[Bar(phase)],
            default_root_dir=self.folder,
            inference_mode=True,
        )

    def sync(self) -> None:
        """Wait for the other processes, so that what they wrote is there."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()


def quiet() -> None:
    """Silence what tells a user nothing about the run."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*srun.*")
