"""Trains one phase of a recipe by the loop that all trainings share."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from btp.runner.training.course import Course
from btp.runner.training.fit import EVERY, KEEP, STATE, fit
from experiments.embedded.muon import Muon
from experiments.embedded.recipe import Phase, Recipe


class PhaseCourse(Course):
    """One phase of a recipe. Batch i depends on (seed, phase, i) alone."""

    workers = 1
    key = "phase"

    def __init__(self, recipe: Recipe, phase: Phase, learner: nn.Module):
        self.recipe, self.pace, self.learner = recipe, phase, learner
        self.phase, self.name = phase, phase.name

    def draw(self, step: int) -> dict[str, Tensor]:
        """The recipe's batch."""
        rng = np.random.default_rng([self.recipe.seed, 77, self.recipe.phases.index(self.phase), step])
        return self.recipe.draw(rng, self.phase)

    def losses(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """The recipe's."""
        return self.recipe.losses(self.learner, batch, self.phase)

    def trained(self) -> nn.Module:
        """The recipe's choice."""
        return self.recipe.trained(self.learner, self.phase)

    def optimiser(self) -> Muon:
        """Muon with AdamW."""
        return Muon(self.trained(), lr=self.phase.rate)

    def not_finite(self, step: int, found: dict[str, float]) -> Exception:
        """Lower the rate."""
        return RuntimeError(
            f"{self.recipe.name}, phase {self.phase.name}, step {step}: the loss is not finite ({found}). Lower the "
            "phase's rate in its recipe and start again from the last state."
        )

    def missed(self, means: dict[str, float]) -> Exception:
        """More steps, or a lower goal."""
        missed = ", ".join(f"{key} {means[key]:.2f} of {goal}" for key, goal in self.phase.until.items())
        return ValueError(
            f"{self.recipe.name}, phase {self.phase.name}: {self.phase.steps} steps are over, and it has {missed}. "
            "Raise the phase's steps or lower its `until` in the recipe, and run the same command again: it goes on "
            "from there."
        )


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
    done = out / "done.pt"
    if done.exists():
        learner.load_state_dict(torch.load(done, weights_only=True))
        return True
    if not (out / STATE).exists():
        recipe.begin(learner, phase)
    course = PhaseCourse(recipe, phase, learner)
    if not fit(course, out, minutes=minutes, device=device, keep=KEEP, every=EVERY):
        return False
    part = done.with_suffix(".tmp")
    torch.save(learner.state_dict(), part)
    part.replace(done)
    return True
