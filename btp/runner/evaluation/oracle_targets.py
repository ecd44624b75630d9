"""Hands boxes of a batch to the oracle pruner, and questions with their videos to pruners that match frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from btp.core.pruner import Pruner
from btp.pruners.metok import Asked
from btp.tasks.sample import Box, Sample


@runtime_checkable
class Targeted(Protocol):
    """A pruner that is told, batch by batch, which boxes of the picture matter."""

    def set_targets(self, targets: Sequence[Sequence[Box]]) -> None:
        """One sequence of boxes per row, in shares of the picture's sides."""
        ...


@runtime_checkable
class Matching(Protocol):
    """A pruner that holds the frames of a prompt's videos against its question."""

    def set_clips(self, rows: Sequence[Asked]) -> None:
        """What each row asks, of which videos."""
        ...


def aim(pruner: Pruner | None, samples: Sequence[Sample], clips: Sequence[Sequence[Sequence[Any]]] = ()) -> None:
    """Hand over the boxes that each sample's answer needs, all labelled ones where the task does not know, or its
    question and its videos.
    """
    if isinstance(pruner, Targeted):
        pruner.set_targets([s.targets or s.boxes for s in samples])
    if isinstance(pruner, Matching):
        every = clips or [()] * len(samples)
        pruner.set_clips([Asked(s.question, tuple(mine)) for s, mine in zip(samples, every, strict=True)])


def aim_nowhere(pruner: Pruner | None, rows: int, samples: Sequence[Sample] = ()) -> None:
    """Let a pruner that wants targets run without any, to be timed; one that matches frames has to match them."""
    if isinstance(pruner, Targeted):
        pruner.set_targets([()] * rows)
    if isinstance(pruner, Matching):
        pruner.set_clips([Asked(s.question, s.clips) for s in samples])
