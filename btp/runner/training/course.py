"""Interface of a training: learning-rate schedule, batches, losses, trained parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from math import cos, pi
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

CURVES = ("linear", "cosine")


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Steps and learning-rate schedule of a training.

    Attributes:
        steps: optimiser steps.
        batch: samples per step, over all devices.
        rate: peak learning rate, reached after `warmup` steps.
        losses: weight of each loss; losses without a weight are logged only.
        warmup: steps of linear warm-up.
        decay: share of the steps at the end over which the rate falls.
        curve: linear (to 2% of the peak) | cosine (to 0).
        average: decay per step of the running mean of the weights, which is what is handed on; None hands on the last.
        until: values that end the training early, once the running means of all of them have reached these; one whose
            steps are over before that is refused.
        clip: largest norm of the gradient.
    """

    steps: int
    batch: int
    rate: float
    losses: dict[str, float]
    warmup: int = 100
    decay: float = 0.35
    curve: str = "linear"
    average: float | None = 0.995
    until: dict[str, float] = field(default_factory=dict)
    clip: float = 1.0

    def share(self, step: int) -> float:
        """Share of the peak learning rate at a step, from 0 on."""
        start = self.steps * (1 - self.decay)
        done = 0.0 if step <= start else (step - start) / (self.steps - start)
        down = 1 - 0.98 * done if self.curve == "linear" else (1 + cos(pi * min(done, 1.0))) / 2
        return min(1.0, (step + 1) / self.warmup) * down if self.warmup else down


class Course(ABC):
    """One training. Batch i depends on the course and i alone, so that a resumed one sees what an unbroken one would.

    Attributes:
        name: Name for messages and the log.
        pace: how long and how fast.
        learner: what is trained and saved; a frozen model that it is trained with lies elsewhere.
        workers: processes that draw batches ahead.
        key: what a line of the log calls the name.
    """

    name: str
    pace: Pace
    learner: nn.Module
    workers: ClassVar[int] | int = 0
    key: ClassVar[str] = "training"

    @abstractmethod
    def draw(self, step: int) -> Any:
        """The batch of a step: of this process, where several share the work."""

    @abstractmethod
    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Every loss of a batch, and whatever else is worth logging, as scalars; not every batch has to have all."""

    @abstractmethod
    def optimiser(self) -> Optimizer:
        """For the parameters that train, at the peak rate."""

    def trained(self) -> nn.Module:
        """The part of the learner that trains; the rest is frozen."""
        return self.learner

    def share_gradients(self) -> None:  # noqa: B027  (one process has nothing to share)
        """Called behind the backward pass: make the gradients of all processes one."""

    @abstractmethod
    def not_finite(self, step: int, found: dict[str, float]) -> Exception:
        """What to raise where the loss is NaN or inf."""

    def watch(self, step: int, means: dict[str, float]) -> None:  # noqa: B027  (most look on)
        """Called with the means of the latest steps, whenever a line of the log is written; may end the training."""

    @abstractmethod
    def missed(self, means: dict[str, float]) -> Exception:
        """What to raise where the steps are over and `until` is not reached."""
