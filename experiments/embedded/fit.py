"""Trains one phase of a recipe with Lightning: steps, clipping, schedule, running mean of weights, resume."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar, WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset

from experiments.embedded.muon import Muon
from experiments.embedded.recipe import Phase, Recipe

EVERY = 50  # steps between two lines of the log
KEEP = 100  # steps between two states to go on from


class Batches(IterableDataset):
    """The batches of a phase from step `first` on; batch i depends on (seed, phase, i) alone, so a resumed run sees the
    batches that an unbroken one would see."""

    def __init__(self, recipe: Recipe, phase: Phase, first: int):
        self.recipe, self.phase, self.first = recipe, phase, first

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        number = self.recipe.phases.index(self.phase)
        for step in range(self.first, self.phase.steps):
            rng = np.random.default_rng([self.recipe.seed, 77, number, step])
            yield self.recipe.collate([self.recipe.sample(rng, self.phase) for _ in range(self.phase.batch)])


class Fit(L.LightningModule):
    """One phase of a recipe."""

    def __init__(self, recipe: Recipe, phase: Phase, learner: nn.Module):
        super().__init__()
        self.recipe, self.phase, self.learner = recipe, phase, learner
        self.seen, self.began, self.since = Counter(), 0.0, 0
        learner.requires_grad_(False)
        recipe.trained(learner, phase).requires_grad_(True)

    def configure_optimizers(self):
        """Muon with AdamW; the rate warms up, stays, and falls to 2%."""
        optimiser = Muon(self.recipe.trained(self.learner, self.phase), lr=self.phase.rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, self._share)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _share(self, step: int) -> float:
        steps, start = self.phase.steps, self.phase.steps * (1 - self.phase.decay)
        down = 1.0 if step < start else 1 - 0.98 * (step - start) / (steps - start)
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

    def _note(self, found: dict[str, Tensor]) -> None:
        if not self.began:
            self.began, self.since = time.time(), self.global_step
        self.seen.update({key: value.item() for key, value in found.items()})
        step = self.global_step + 1
        if step % EVERY == 0 or step == self.phase.steps:
            count = step % EVERY or EVERY
            pace = (time.time() - self.began) / max(step - self.since, 1)
            line = {"phase": self.phase.name, "step": step, "s": round(pace, 3)}
            line |= {k: round(v / count, 4) for k, v in self.seen.items()}
            with (Path(self.trainer.default_root_dir) / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
            self.seen.clear()


class Minutes(Callback):
    """Stops after some minutes, with a state to go on from."""

    def __init__(self, minutes: float, state: Path):
        self.end, self.state = time.time() + 60 * minutes, state

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        """Save and stop once the time is over; at the end of `fit` the running mean has replaced the weights."""
        if time.time() > self.end and not trainer.should_stop:
            trainer.save_checkpoint(self.state)
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
    saver = ModelCheckpoint(out, filename="step", every_n_train_steps=KEEP, save_last=True, save_top_k=0)
    trainer = L.Trainer(
        default_root_dir=out,
        accelerator=device,
        devices=1,
        max_steps=phase.steps,
        max_epochs=-1,
        gradient_clip_val=1.0,
        callbacks=[mean, saver, Minutes(minutes, state), TQDMProgressBar(refresh_rate=10)],
        logger=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, ckpt_path=state if state.exists() else None)
    if trainer.global_step < phase.steps:
        return False
    part = done.with_suffix(".tmp")
    torch.save(learner.state_dict(), part)
    part.replace(done)
    return True
