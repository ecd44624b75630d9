"""What a recipe of an embedded model says: phases, data, losses, what trains, what is saved."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from btp.models.embedded.pocket_vision import MEAN, STD
from btp.runner.training.course import Pace


@dataclass(frozen=True)
class Phase(Pace):
    """A stretch of the training with an optimiser of its own; how long and how fast is what every training says.

    Attributes:
        name: Name of its folder.
        data: Settings that `Recipe.sample` reads.
    """

    name: str
    data: dict = field(default_factory=dict, kw_only=True)


class Recipe(ABC):
    """How one embedded model is made. `experiments/embedded/recipes/NAME.py` defines `RECIPE`, an instance."""

    name: str
    phases: tuple[Phase, ...]
    seed: int = 0

    @abstractmethod
    def build(self) -> nn.Module:
        """The model together with its throw-away heads, as the first phase finds them."""

    @abstractmethod
    def sample(self, rng: np.random.Generator, phase: Phase) -> dict:
        """One training sample, drawn with `rng` alone."""

    @abstractmethod
    def collate(self, samples: list[dict]) -> dict[str, Tensor]:
        """A batch of samples."""

    def draw(self, rng: np.random.Generator, phase: Phase) -> dict[str, Tensor]:
        """One batch, drawn with `rng` alone."""
        return self.collate([self.sample(rng, phase) for _ in range(phase.batch)])

    @abstractmethod
    def losses(self, learner: nn.Module, batch: dict[str, Tensor], phase: Phase) -> dict[str, Tensor]:
        """Every loss of a batch, and whatever else is worth logging, as scalars; not every batch has to have all."""

    @abstractmethod
    def save(self, learner: nn.Module, folder: Path) -> None:
        """Write the finished model as a checkpoint that `btp.models` loads."""

    def trained(self, learner: nn.Module, phase: Phase) -> nn.Module:
        """The part of the learner whose weights `phase` changes; the rest is frozen."""
        return learner

    def load(self, learner: nn.Module, folder: Path) -> None:
        """Take up the weights of a checkpoint that `save` wrote; heads stay as they are.

        Raises:
            ValueError: The recipe has no way to.
        """
        raise ValueError(f"The recipe {self.name} cannot begin from a checkpoint. Train it without --init.")

    def begin(self, learner: nn.Module, phase: Phase) -> None:  # noqa: B027  (most recipes have nothing to do here)
        """Change the learner in front of a phase, once; a resumed phase does not come here again."""


def normalised(pixels: Tensor) -> Tensor:
    """Pixels in bytes as the processor of every embedded model hands them on."""
    return (pixels.float() / 255 - MEAN) / STD
