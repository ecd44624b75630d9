"""Trains one phase of a recipe with Lightning: steps, clipping, schedule, running mean of weights, resume."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, TQDMProgressBar, WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset

from experiments.embedded.muon import Muon
from experiments.embedded.recipe import Phase, Recipe

EVERY = 50  # steps between two lines of the log
KEEP = 100  # steps between two states to go on from
MEAN = 0.98  # decay per step of the running means that may end a phase


class Batches(IterableDataset):
    """The batches of a phase from step `first` on; batch i depends on (seed, phase, i) alone, so a resumed run sees the
    batches that an unbroken one would see."""

    def __init__(self, recipe: Recipe, phase: Phase, first: int):
        self.recipe, self.phase, self.first = recipe, phase, first

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        number = self.recipe.phases.index(self.phase)
        for step in range(self.first, self.phase.steps):
            rng = np.random.default_rng([self.recipe.seed, 77, number, step])
            yield self.recipe.draw(rng, self.phase)


class Fit(L.LightningModule):
    """One phase of a recipe."""

    def __init__(self, recipe: Recipe, phase: Phase, learner: nn.Module):
        super().__init__()
        self.recipe, self.phase, self.learner = recipe, phase, learner
        self.seen, self.count, self.began, self.since = Counter(), Counter(), 0.0, 0
        self.means = dict.fromkeys(phase.until, 0.0)
        learner.requires_grad_(False)
        recipe.trained(learner, phase).requires_grad_(True)

    def configure_optimizers(self):
        """Muon with AdamW; the rate warms up, stays, and falls to 2%."""
        optimiser = Muon(self.recipe.trained(self.learner, self.phase), lr=self.phase.rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, self._share)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _share(self, step: int) -> float:
        steps, start = self.phase.steps, self.phase.steps * (1 - self.phase.decay)
        down = 1.0 if step <= start else 1 - 0.98 * (step - start) / (steps - start)
        return min(1.0, (step + 1) / self.phase.warmup) * down

    def train_dataloader(self) -> DataLoader:
        """Batches from the step where the phase stands."""
        batches = Batches(self.recipe, self.phase, self.trainer.global_step)
        return DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=4)

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """Weighted sum of the recipe's losses.

        Raises:
            RuntimeError: The loss is not finite.
        """
        found = self.recipe.losses(self.learner, batch, self.phase)
        total = sum(weight * found[key] for key, weight in self.phase.losses.items())
        if not torch.isfinite(total):
            state = {k: v.item() for k, v in found.items()}
            raise RuntimeError(
                f"{self.recipe.name}, phase {self.phase.name}, step {self.global_step}: the loss is not finite "
                f"({state}). Lower the phase's rate in its recipe and start again from the last state."
            )
        self._note(found)
        return total

    @property
    def reached(self) -> bool:
        """Whether every value that ends the phase is where it must be."""
        return bool(self.means) and all(self.means[key] >= goal for key, goal in self.phase.until.items())

    def on_train_batch_end(self, outputs, batch, index) -> None:
        """Stop once the phase has what it asks for."""
        if self.reached:
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Keep the running means, which say where the phase ends."""
        checkpoint["means"] = dict(self.means)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Take them up again; a value that the phase did not ask for before begins at 0."""
        self.means |= {key: value for key, value in checkpoint["means"].items() if key in self.means}

    def _note(self, found: dict[str, Tensor]) -> None:
        if not self.began:
            self.began, self.since = time.time(), self.global_step
        values = {key: value.item() for key, value in found.items()}
        self.means |= {k: MEAN * m + (1 - MEAN) * values[k] for k, m in self.means.items() if k in values}
        self.seen.update(values)
        self.count.update(values.keys())
        step = self.global_step + 1
        if step % EVERY == 0 or step == self.phase.steps or self.reached:
            pace = (time.time() - self.began) / max(step - self.since, 1)
            line = {"phase": self.phase.name, "step": step, "s": round(pace, 3)}
            line |= {k: round(v / self.count[k], 4) for k, v in self.seen.items()}
            with (Path(self.trainer.default_root_dir) / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
            self.seen.clear()
            self.count.clear()


class State(Callback):
    """Saves a state to go on from, and stops after some minutes.

    Not Lightning's ModelCheckpoint: it also saves when `fit` ends, when the running mean has replaced the weights.
    """

    def __init__(self, minutes: float, state: Path):
        self.end, self.state = time.time() + 60 * minutes, state

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        """Save every KEEP steps and once the time is over, which ends the training; a kill leaves a whole state."""
        over = time.time() > self.end
        if over or trainer.global_step % KEEP == 0 or trainer.global_step == trainer.max_steps:
            part = self.state.with_suffix(".tmp")
            trainer.save_checkpoint(part)
            part.replace(self.state)
        if over:
            trainer.should_stop = True


def train_phase(recipe: Recipe, phase: Phase, learner: nn.Module, out: Path, *, minutes: float, device: str) -> bool:
    """Train a phase, or go on with it; the running mean of the weights is left in `learner`.

    Args:
        recipe: Recipe of the model.
        phase: Phase to train.
        learner: Model and heads, as the phase before left them.
        out: Folder of the phase.
        minutes: Time after which it stops, to be gone on with.
        device: cpu | cuda.

    Returns:
        Whether the phase is finished.

    Raises:
        ValueError: The steps are over before what the phase must reach is reached.
    """
    out.mkdir(parents=True, exist_ok=True)
    done, state = out / "done.pt", out / "last.ckpt"
    if done.exists():
        learner.load_state_dict(torch.load(done, weights_only=True))
        return True
    if not state.exists():
        recipe.begin(learner, phase)
    module = Fit(recipe, phase, learner)
    mean = WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(phase.average))
    trainer = L.Trainer(
        default_root_dir=out,
        accelerator=device,
        devices=1,
        max_steps=phase.steps,
        max_epochs=-1,
        gradient_clip_val=1.0,
        callbacks=[mean, State(minutes, state), TQDMProgressBar(refresh_rate=10)],
        enable_checkpointing=False,
        logger=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, ckpt_path=state if state.exists() else None)
    if phase.until and not module.reached and trainer.global_step >= phase.steps:
        missed = ", ".join(f"{key} {module.means[key]:.2f} of {goal}" for key, goal in phase.until.items())
        raise ValueError(
            f"{recipe.name}, phase {phase.name}: {phase.steps} steps are over, and it has {missed}. Raise the phase's "
            "steps or lower its `until` in the recipe, and run the same command again: it goes on from there."
        )
    if trainer.global_step < phase.steps and not module.reached:
        return False
    part = done.with_suffix(".tmp")
    torch.save(learner.state_dict(), part)
    part.replace(done)
    return True
