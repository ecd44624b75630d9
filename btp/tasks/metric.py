"""The contract of a metric: scores answers one by one, and sums up many of them."""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from importlib import import_module

from btp.tasks import metrics
from btp.tasks.sample import Sample


class Metric:
    """Means of scores; a file of btp/tasks/metrics holds each, a class `Metric` made from this one.

    Args:
        samples: all of the task.

    Raises:
        ValueError: a sample lacks what the metric needs.
    """

    name = "score"

    def __init__(self, samples: Sequence[Sample]):
        self.samples = samples
        for sample in samples:
            self.check(sample)

    def check(self, sample: Sample) -> None:
        """Refuse a sample that the metric cannot score."""

    def score(self, sample: Sample, prediction: str) -> float:
        """Score in [0, 1] of one answer."""
        raise NotImplementedError

    def scores(self, samples: Sequence[Sample], predictions: Sequence[str]) -> list[float]:
        """Scores in [0, 1] of answers, which a metric of a corpus scores together."""
        return [self.score(s, p) for s, p in zip(samples, predictions, strict=True)]

    def summary(self, samples: Sequence[Sample], predictions: Sequence[str]) -> dict[str, float]:
        """Metrics of many answers, by name; here their mean score."""
        return {self.name: mean(self.scores(samples, predictions))}


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; 0 of nothing."""
    return float(sum(values) / len(values)) if values else 0.0


def make_metric(name: str, samples: Sequence[Sample]) -> Metric:
    """The metric in btp/tasks/metrics/<name>.py.

    Raises:
        ValueError: there is no such file, or a sample lacks what it needs.
    """
    known = sorted(module.name for module in pkgutil.iter_modules(metrics.__path__))
    if name not in known:
        raise ValueError(f"task.dataset.metric is {name!r}. Choose from: {', '.join(known)}.")
    return import_module(f"btp.tasks.metrics.{name}").Metric(samples)
