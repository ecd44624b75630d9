"""Intervals of a mean score and paired tests, each by the textbook's method for its kind of score."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

LEVEL = 0.95
RESAMPLES = 4999
SEED = 0
MEMORY = 4_000_000  # numbers held at once while resampling


@dataclass(frozen=True)
class Interval:
    """A mean of `n` scores and its 95% interval; all nan where there is no score."""

    mean: float
    low: float
    high: float
    n: int


def is_binary(scores: ArrayLike) -> bool:
    """True where every score is 0 or 1."""
    return bool(np.isin(np.asarray(scores, float), (0.0, 1.0)).all())


def mean_interval(scores: ArrayLike) -> Interval:
    """Mean of scores in [0, 1] with its 95% interval.

    Right-or-wrong scores get Wilson's interval, graded ones a BCa bootstrap with a fixed seed. One graded
    score, or equal ones, say nothing about their spread: the interval is then all of [0, 1].
    """
    x = np.asarray(scores, float)
    n = len(x)
    if n == 0:
        return Interval(nan, nan, nan, 0)
    if is_binary(x):
        found = stats.binomtest(int(x.sum()), n).proportion_ci(LEVEL, method="wilson")
        return Interval(float(x.mean()), float(found.low), float(found.high), n)
    if np.ptp(x) == 0:
        return Interval(float(x[0]), 0.0, 1.0, n)
    found = stats.bootstrap(
        (x,),
        np.mean,
        confidence_level=LEVEL,
        n_resamples=RESAMPLES,
        batch=_batch(n),
        method="BCa",
        random_state=np.random.default_rng(SEED),
    ).confidence_interval
    return Interval(float(x.mean()), float(found.low), float(found.high), n)


def macro_interval(parts: Sequence[Interval]) -> Interval:
    """Unweighted mean of the means of independent groups, with its 95% interval.

    Built from the groups' own intervals: low = mean - sqrt(sum (mean_i - low_i)^2) / k, high likewise. Stays
    honest where a group is all right or all wrong, where a bootstrap would see no spread.

    Source: Zou and Donner 2008, doi:10.1002/sim.3095 (the method of variance estimates recovery).
    """
    parts = [p for p in parts if p.n]
    if not parts:
        return Interval(nan, nan, nan, 0)
    k = len(parts)
    mean = sum(p.mean for p in parts) / k
    down = sqrt(sum((p.mean - p.low) ** 2 for p in parts)) / k
    up = sqrt(sum((p.high - p.mean) ** 2 for p in parts)) / k
    return Interval(mean, max(mean - down, 0.0), min(mean + up, 1.0), sum(p.n for p in parts))


def paired_p(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided p of "both score the same on average" for scores of the same samples, in the same order.

    Right-or-wrong scores: McNemar's exact test. Graded ones: a permutation test of the mean difference, exact
    where 2^(pairs that differ) is small and drawn with a fixed seed otherwise. nan without a pair.

    Raises:
        ValueError: not one score of `a` per score of `b`.
    """
    x, y = np.asarray(a, float), np.asarray(b, float)
    if x.shape != y.shape:
        raise ValueError(f"A paired test needs the same samples on both sides, but has {len(x)} and {len(y)}.")
    if len(x) == 0:
        return nan
    differ = x != y
    if not differ.any():
        return 1.0
    if is_binary(x) and is_binary(y):
        return float(stats.binomtest(int((x > y).sum()), int(differ.sum())).pvalue)
    if differ.sum() == 1:
        return 1.0
    return float(
        stats.permutation_test(
            (x[differ], y[differ]),  # pairs that agree change no permutation's sum
            _sum_of_differences,
            permutation_type="samples",
            n_resamples=RESAMPLES,
            batch=_batch(int(differ.sum())),
            random_state=np.random.default_rng(SEED),
        ).pvalue
    )


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p-values of several tests (Holm 1979); nan stays nan and counts as no test."""
    values = np.asarray(p, float)
    order = [i for i in np.argsort(values) if not np.isnan(values[i])]
    adjusted, worst = values.copy(), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(order) - rank) * values[i]))
        adjusted[i] = worst
    return adjusted.tolist()


def _sum_of_differences(x: NDArray, y: NDArray, axis: int) -> NDArray:
    return np.sum(x - y, axis=axis)


def _batch(n: int) -> int:
    return max(1, MEMORY // n)
