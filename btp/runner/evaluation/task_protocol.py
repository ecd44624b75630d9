"""Protocol for tasks that draw, answer and score their samples themselves, as those of another harness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from btp.tasks.sample import Sample, Task


@dataclass(frozen=True)
class Judgement:
    """Scores and metrics of one arm.

    Attributes:
        scores: Scores in [0, 1], by sample id.
        metrics: Metrics of all answers together, by name.
    """

    scores: Mapping[str, float]
    metrics: Mapping[str, float]


@runtime_checkable
class OwnWay(Protocol):
    """A task with more to it than questions, each answered and scored alone.

    Attributes:
        collate: Subclass of `Collate` that makes its batches.
        evaluate: Subclass of `Evaluate` that answers them.
    """

    collate: type
    evaluate: type

    def draw(self, limit: int | None) -> list[Sample]:
        """The samples of a run: `limit` of each of its parts, None for all."""
        ...

    def judge(self, rows: Mapping[str, Mapping[str, Any]]) -> Judgement:
        """Score the answers of an arm: sample id -> row of the answers' store."""
        ...


def draw(task: Task, limit: int | None) -> list[Sample]:
    """The samples of a run.

    Raises:
        ValueError: there are none.
    """
    if isinstance(task, OwnWay):
        samples = task.draw(limit)
    else:
        samples = [task[i] for i in range(min(len(task), limit) if limit else len(task))]
    if not samples:
        raise ValueError("The task has no samples. Point task.dataset at some, or raise limit.")
    return samples
