"""Metrics of many answers together, per arm: F1, acc+, CIDEr and others that are no mean of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from btp.runner.arms import Arm
from btp.runner.evaluation.task_protocol import OwnWay
from btp.tasks.sample import Corpus, Sample, Task

Rows = Mapping[str, Mapping[str, Mapping[str, Any]]]  # arm -> sample id -> row of the answers' store


def scores_of(task: Task, samples: Sequence[Sample], rows: Mapping[str, Mapping[str, Any]]) -> list[float]:
    """Scores in [0, 1] of one arm's answers, in the order of the samples."""
    if isinstance(task, OwnWay):
        judged = task.judge(rows).scores
        return [judged[s.id] for s in samples]
    said = [rows[s.id]["prediction"] for s in samples]
    if isinstance(task, Corpus):
        return task.scores(samples, said)
    return [task.score(s, text) for s, text in zip(samples, said, strict=True)]


def corpus_metrics(task: Task, arms: Sequence[Arm], rows: Rows, samples: Sequence[Sample]) -> dict[str, Any]:
    """What the task itself makes of each arm's answers; nothing where it only scores samples.

    Returns:
        arm -> {all: {metric: value}, by_ability: {ability: {metric: value}}}.
    """
    if isinstance(task, OwnWay):
        return {arm.name: {"all": dict(task.judge(rows[arm.name]).metrics), "by_ability": {}} for arm in arms}
    if not isinstance(task, Corpus):
        return {}
    parts = {a: [s for s in samples if s.ability == a] for a in dict.fromkeys(s.ability for s in samples)}
    found = {}
    for arm in arms:

        def summary(some: Sequence[Sample], name: str = arm.name) -> dict[str, float]:
            return task.summary(some, [rows[name][s.id]["prediction"] for s in some])

        by_ability = {a: summary(some) for a, some in parts.items()} if len(parts) > 1 else {}
        found[arm.name] = {"all": summary(samples), "by_ability": by_ability}
    return found
