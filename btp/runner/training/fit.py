"""The one loop of all trainings, on Lightning: steps, clipping, schedule, running mean of weights, log, resume."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Callback, TQDMProgressBar, WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset

from btp.results.atomic import write_text
from btp.runner.training.course import Course

EVERY = 50  # steps between two lines of the log
KEEP = 100  # steps between two states to go on from
MEAN = 0.98  # decay per step of the running means that may end a training
STATE, LOG = "last.ckpt", "log.jsonl"


class Batches(IterableDataset):
    """The batches of a course from step `first` on."""

    def __init__(self, course: Course, first: int):
        self.course, self.first = course, first

    def __iter__(self) -> Iterator[Any]:
        for step in range(self.first, self.course.pace.steps):
            yield self.course.draw(step)


class Fit(L.LightningModule):
    """One course.

    Args:
        course: what trains.
        every: steps between two lines of the log.
        logs: whether this process writes them.
    """

    def __init__(self, course: Course, every: int = EVERY, logs: bool = True):
        super().__init__()
        self.course, self.pace, self.learner, self.every, self.logs = course, course.pace, course.learner, every, logs
        self.seen, self.count, self.began, self.since = Counter(), Counter(), 0.0, 0
        self.means = dict.fromkeys(self.pace.until, 0.0)
        self.learner.requires_grad_(False)
        course.trained().requires_grad_(True)

    def configure_optimizers(self):
        """The course's optimiser; the rate follows its pace."""
        optimiser = self.course.optimiser()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, self.pace.share)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train_dataloader(self) -> DataLoader:
        """Batches from the step where the training stands."""
        batches = Batches(self.course, self.trainer.global_step)
        ahead: dict[str, Any] = (
            {"num_workers": self.course.workers, "prefetch_factor": 4} if self.course.workers else {}
        )
        return DataLoader(batches, batch_size=None, **ahead)

    def training_step(self, batch: Any, index: int) -> Tensor:
        """Weighted sum of the course's losses.

        Raises:
            Exception: as the course says, where the loss is not finite.
        """
        found = self.course.losses(batch, self.global_step)
        total: Any = sum(weight * found[key] for key, weight in self.pace.losses.items())
        if not torch.isfinite(total):
            raise self.course.not_finite(self.global_step, {k: v.item() for k, v in found.items()})
        self._note(found)
        return total

    def on_after_backward(self) -> None:
        """Processes agree on a gradient before it is clipped."""
        self.course.share_gradients()

    @property
    def reached(self) -> bool:
        """Whether every value that ends the training is where it must be."""
        return bool(self.means) and all(self.means[key] >= goal for key, goal in self.pace.until.items())

    def on_train_batch_end(self, outputs, batch, index) -> None:
        """Stop once the course has what it asks for."""
        if self.reached:
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Keep the running means, which say where the training ends, and what the next line of the log is made of."""
        checkpoint |= {"means": dict(self.means), "seen": dict(self.seen), "count": dict(self.count)}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Take them up again; a value that was not asked for before begins at 0."""
        self.means |= {key: value for key, value in checkpoint["means"].items() if key in self.means}
        self.seen.update(checkpoint.get("seen", {}))
        self.count.update(checkpoint.get("count", {}))

    def _note(self, found: dict[str, Tensor]) -> None:
        if not self.began:
            self.began, self.since = time.time(), self.global_step
        values = {key: value.item() for key, value in found.items()}
        self.means |= {k: MEAN * m + (1 - MEAN) * values[k] for k, m in self.means.items() if k in values}
        self.seen.update(values)
        self.count.update(values.keys())
        step = self.global_step + 1
        if step % self.every == 0 or step == self.pace.steps or self.reached:
            pace = (time.time() - self.began) / max(step - self.since, 1)
            means = {k: v / self.count[k] for k, v in self.seen.items()}
            line = {self.course.key: self.course.name, "step": step, "s": round(pace, 3)}
            line |= {k: round(v, 4) for k, v in means.items()}
            if self.logs:
                with (Path(self.trainer.default_root_dir) / LOG).open("a", encoding="utf-8") as log:
                    log.write(json.dumps(line) + "\n")
            self.seen.clear()
            self.count.clear()
            self.course.watch(step, means)


class State(Callback):
    """Saves a state to go on from, and stops after some minutes.

    Not Lightning's ModelCheckpoint: it also saves when `fit` ends, when the running mean has replaced the weights.
    """

    def __init__(self, minutes: float, state: Path, keep: int = KEEP):
        self.end, self.state, self.keep = time.time() + 60 * minutes, state, keep

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        """Save every KEEP steps and once the time is over, which ends the training; a kill leaves a whole state."""
        over = time.time() > self.end
        if over or trainer.global_step % self.keep == 0 or trainer.global_step == trainer.max_steps:
            part = self.state.with_suffix(".tmp")
            trainer.save_checkpoint(part)
            part.replace(self.state)
        if over:
            trainer.should_stop = True


def fit(
    course: Course,
    out: Path,
    *,
    minutes: float = 1e9,
    device: str = "cpu",
    index: int | None = None,
    keep: int = KEEP,
    every: int = EVERY,
    leads: bool = True,
) -> bool:
    """Train a course, or go on with it from the state in its folder; what it hands on is left in its learner.

    Args:
        out: folder of state and log, which is there.
        minutes: time after which it stops, to be gone on with.
        device: Lightning's accelerator.
        index: Index of the device, where one is named.
        keep: steps between two states.
        every: steps between two lines of the log.
        leads: this process writes, and shows the bar.

    Returns:
        Whether it is finished.

    Raises:
        Exception: as the course says: a loss that is not finite, or steps that are over before its end is reached.
    """
    state = out / STATE
    module = Fit(course, every, leads)
    calls: list[Callback] = []
    if course.pace.average is not None:
        calls.append(WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(course.pace.average)))
    if leads:
        calls += [State(minutes, state, keep), TQDMProgressBar(refresh_rate=10)]
        _forget_later_lines(out / LOG, state)
    trainer = L.Trainer(
        default_root_dir=out,
        accelerator=device,
        devices=1 if index is None else [index],
        plugins=[LightningEnvironment()],  # not the cluster's, which would start processes of its own
        max_steps=course.pace.steps,
        max_epochs=-1,
        gradient_clip_val=course.pace.clip,
        callbacks=calls,
        enable_checkpointing=False,
        enable_progress_bar=leads,
        logger=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, ckpt_path=state if state.exists() else None)
    if course.pace.until and not module.reached and trainer.global_step >= course.pace.steps:
        raise course.missed(module.means)
    return trainer.global_step >= course.pace.steps or module.reached


def _forget_later_lines(log: Path, state: Path) -> None:
    """Take lines of steps out of the log that are to come again: a killed training had written them."""
    if not log.exists():
        return
    at = torch.load(state, weights_only=False, map_location="cpu")["global_step"] if state.exists() else 0
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= at]
    if kept != lines:
        write_text(log, "".join(kept))
