"""Tells a pruner that wants to know (the oracle) what matters in the coming batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from btp.core.pruner import Pruner
from btp.tasks.sample import Box, Sample


@runtime_checkable
class Targeted(Protocol):
    """A pruner that is told, batch by batch, which boxes of the picture matter."""

    def set_targets(self, targets: Sequence[Sequence[Box]]) -> None:
        """One sequence of boxes per row, in shares of the picture's sides."""
        ...


def aim(pruner: Pruner | None, samples: Sequence[Sample]) -> None:
    """Hand over the boxes that each sample's answer needs, all labelled ones where the task does not know."""
    if isinstance(pruner, Targeted):
        pruner.set_targets([s.targets or s.boxes for s in samples])


def aim_nowhere(pruner: Pruner | None, rows: int) -> None:
    """Let a pruner that wants targets run without any, to be timed."""
    if isinstance(pruner, Targeted):
        pruner.set_targets([()] * rows)
