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
_SMALL = 0.01  # a drawn p below is drawn again, finer, so that a correction over many tests does not drown it ...
_FINER = 199_999  # ... with this many draws


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
    p = float(
        stats.permutation_test(
            (x[differ], y[differ]),  # pairs that agree change no permutation's sum
            _sum_of_differences,
            permutation_type="samples",
            n_resamples=RESAMPLES,
            batch=_batch(int(differ.sum())),
            random_state=np.random.default_rng(SEED),
        ).pvalue
    )
    exact = 2.0 ** differ.sum() <= RESAMPLES
    return p if exact or p > _SMALL else _sign_flips((x - y)[differ])


def paired_gap(groups: Sequence[tuple[ArrayLike, ArrayLike]]) -> Interval:
    """Macro difference of scores of the same samples, with the 95% interval of a paired bootstrap.

    The difference is taken sample by sample, averaged in each group, and the groups count the same. The bootstrap
    draws samples anew inside each group and takes percentiles (fixed seed); a group whose pairs all differ alike adds
    no width.

    Args:
        groups: per group, scores of one side and of the other, in the same order.

    Returns:
        Interval of one side minus the other, n pairs in all; nan where there is none.

    Raises:
        ValueError: a group has not one score per score.
    """
    differences = []
    for a, b in groups:
        x, y = np.asarray(a, float), np.asarray(b, float)
        if x.shape != y.shape:
            raise ValueError(f"A paired gap needs the same samples on both sides, but has {len(x)} and {len(y)}.")
        if len(x):
            differences.append(x - y)
    if not differences:
        return Interval(nan, nan, nan, 0)
    rng = np.random.default_rng(SEED)
    drawn = np.mean([_resampled_means(d, rng) for d in differences], axis=0)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    mean = float(np.mean([d.mean() for d in differences]))
    if max(map(len, differences)) == 1:  # nothing to draw anew: the spread is not known
        low = high = nan
    return Interval(mean, float(low), float(high), sum(len(d) for d in differences))


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p-values of several tests (Holm 1979); nan stays nan and counts as no test."""
    values = np.asarray(p, float)
    order = [i for i in np.argsort(values) if not np.isnan(values[i])]
    adjusted, worst = values.copy(), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(order) - rank) * values[i]))
        adjusted[i] = worst
    return adjusted.tolist()


def _sign_flips(differences: NDArray) -> float:
    """Two-sided p of a mean difference of 0, from signs drawn anew; the same test with more draws."""
    rng, n = np.random.default_rng(SEED), len(differences)
    wanted = abs(differences.sum()) - 1e-9 * np.abs(differences).sum()
    hits = 0
    for size in _pieces(_FINER, n):
        signs = 2.0 * rng.integers(0, 2, (size, n), dtype=np.int8) - 1
        hits += int((np.abs(signs @ differences) >= wanted).sum())
    return (hits + 1) / (_FINER + 1)


def _resampled_means(values: NDArray, rng: np.random.Generator) -> NDArray:
    """[RESAMPLES] means of as many values, drawn with replacement, a bounded number at a time."""
    n = len(values)
    return np.concatenate([values[rng.integers(0, n, (size, n))].mean(axis=1) for size in _pieces(RESAMPLES, n)])


def _pieces(draws: int, n: int) -> list[int]:
    """Sizes of the pieces in which so many draws of n numbers are made."""
    step = _batch(n)
    return [min(step, draws - done) for done in range(0, draws, step)]


def _sum_of_differences(x: NDArray, y: NDArray, axis: int) -> NDArray:
    return np.sum(x - y, axis=axis)


def _batch(n: int) -> int:
    return max(1, MEMORY // n)
