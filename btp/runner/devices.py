"""Devices of a run: processes, threads, progress bars."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from btp.runner.evaluation.batch_size import BatchSize
from btp.runner.evaluation.data import Collate, Feed, Samples, workers_for
from btp.runner.workers.ranks import devices

T = TypeVar("T")
PATIENCE_H = 12  # that a process waits for the others, which may calibrate or wait for another run meanwhile


class Bar(TQDMProgressBar):
    """A progress bar that says which phase it is.

    Args:
        phase: what it says.
        samples: Samples that will come; None counts batches.
    """

    def __init__(self, phase: str, samples: int | None = None):
        super().__init__(leave=True)
        self.phase, self.samples = phase, samples

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
        return self._plain(super().init_test_tqdm())

    def init_predict_tqdm(self) -> Tqdm:
        """The bar of a prediction."""
        return self._plain(super().init_predict_tqdm())

    def on_test_batch_start(self, trainer: Any, module: Any, batch: Any, index: int, *where: Any) -> None:
        """Say what is coming."""
        if self.has_dataloader_changed(0):
            self._begin(self.test_progress_bar, self.test_description, self.total_test_batches_current_dataloader)

    def on_predict_batch_start(self, trainer: Any, module: Any, batch: Any, index: int, *where: Any) -> None:
        """As of a test."""
        if self.has_dataloader_changed(0):
            total = self.total_predict_batches_current_dataloader
            self._begin(self.predict_progress_bar, self.predict_description, total)

    def on_test_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, *where: Any) -> None:
        """Count samples where their number is known, batches otherwise."""
        self._count(self.test_progress_bar, batch)

    def on_predict_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, *where: Any) -> None:
        """As of a test."""
        self._count(self.predict_progress_bar, batch)

    def _begin(self, bar: Tqdm, phase: str, batches: int | float) -> None:
        bar.reset(batches if self.samples is None else self.samples)
        bar.set_description(phase)

    def _count(self, bar: Tqdm, batch: Any) -> None:
        bar.n += 1 if self.samples is None else len(batch.samples)
        bar.refresh()

    def _plain(self, bar: Tqdm) -> Tqdm:
        what = "batches" if self.samples is None else "samples"
        bar.bar_format = f"{{desc}} {{percentage:3.0f}}%|{{bar:28}}| {{n_fmt}}/{{total_fmt}} {what}, {{elapsed}}"
        bar.bar_format += ", {remaining} left"
        return bar


class Lost(RuntimeError):
    """Another process of this run has ended, so that this one cannot go on."""


class Machine:
    """Devices, processes and trainers of one run.

    Args:
        config: the trainer group's keys.
        folder: Lightning's root.

    Attributes:
        rank: Rank of this process.
        world: processes of the run, one per device.
        batch: samples a forward takes; shrinks where memory ends.
        workers: processes that make batches for this one.

    Raises:
        ValueError: the devices asked for are not there, or their processes were not started.
    """

    def __init__(self, config: Mapping[str, Any], folder: Path):
        self.config, self.folder = config, folder
        self.rank, self.world = place(config)
        self.batch = BatchSize(config["batch"], "trainer.batch")
        self.workers = workers_for(config["workers"], self.world)
        if config["threads"]:
            torch.set_num_threads(config["threads"])
        quiet()
        self.device = self.trainer("probe").strategy.root_device
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("gloo", timeout=timedelta(hours=PATIENCE_H))

    @property
    def leads(self) -> bool:
        """True in the process that writes what all found."""
        return self.rank == 0

    def feed(
        self,
        samples: Samples,
        processor: Any,
        collate: Callable[..., Collate] = Collate,
        pixels: Sequence[int] = (),
        groups: Sequence[object] = (),
    ) -> Feed:
        """What makes batches for this process."""
        return Feed(samples, processor, self.workers, self.device.type == "cuda", collate, pixels, groups)

    def trainer(self, phase: str, samples: int | None = None) -> L.Trainer:
        """A trainer for one phase on this process's device, with its own bar; processes know of each other here only.

        Args:
            samples: Samples that it will see, for the bar; None counts batches.
        """
        mine = devices(self.config)[self.rank]
        on_cpu = self.config["accelerator"] == "cpu" or not torch.cuda.is_available()
        return L.Trainer(
            accelerator=self.config["accelerator"],
            devices=1 if on_cpu else [mine],
            plugins=[LightningEnvironment()],  # not the cluster's, which would start processes of its own
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=self.leads,
            callbacks=[Bar(phase, samples)] if self.leads else [],
            default_root_dir=self.folder,
            inference_mode=True,
        )

    def sync(self) -> None:
        """Wait for the other processes, so that what they wrote is there."""
        self.gather(None)

    def agree(self, value: T) -> T:
        """What the leading process found, whatever this one did."""
        return self.gather(value if self.leads else None)[0]  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """What each process found, by rank.

        Raises:
            Lost: one of them has ended, or did not come for half a day.
        """
        found: list[Any] = [value]
        if self.world > 1:
            found = [None] * self.world
            try:
                dist.all_gather_object(found, value)
            except RuntimeError as error:
                raise Lost(f"another process of this run has ended or hangs: {error}") from error
        return found


def place(trainer: Mapping[str, Any]) -> tuple[int, int]:
    """(rank, world) of this process in a run with this trainer config.

    Raises:
        ValueError: the devices asked for are not there, or their processes were not started.
    """
    world = len(devices(trainer))
    if world == 1:
        return 0, 1
    if os.environ.get("WORLD_SIZE") != str(world):
        raise ValueError(
            f"trainer.devices asks for {world} processes, but this one was started alone. Start the run with run.py, "
            f"or with `torchrun --nproc-per-node {world}`."
        )
    return int(os.environ["RANK"]), world


def quiet() -> None:
    """Silence what tells a user nothing about the run."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads and forked workers do not go together
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*srun.*")
