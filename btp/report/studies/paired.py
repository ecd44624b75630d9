"""Paired scores of two arms on the same samples: difference, test, and share retained.

Intervals are made of those that every page shows for a mean (Wilson's, or a bootstrap of graded scores), so that they
do not collapse where all answers are right, or all wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, sqrt

import numpy as np
from numpy.typing import NDArray

from btp.report.comparison.groups import Entry, pair
from btp.results.reader import RunFolder
from btp.results.stats import Interval, macro_interval, mean_interval, paired_p

Groups = Sequence[tuple[NDArray, NDArray]]


def abilities_of(run: RunFolder, score: str) -> list[str]:
    """The abilities that a score averages: macro, reading, rest, or one as `accuracy_NAME`; none of other numbers."""
    if score == "macro":
        return run.abilities
    if score in ("reading", "rest"):
        return [a for a in run.abilities if (a in run.reading) == (score == "reading")]
    return [a for a in run.abilities if f"accuracy_{a}" == score]


def paired(entry: Entry, other: Entry, score: str) -> Groups:
    """Scores of both of the samples that both answered, ability by ability."""
    a, b = pair(entry.rows, other.rows)
    out = []
    for ability in abilities_of(entry.run, score):
        mine = a.index[a["ability"].eq(ability)]
        if len(mine):
            out.append((a.loc[mine, "score"].to_numpy(float), b.loc[mine, "score"].to_numpy(float)))
    return out


def p_of(groups: Groups) -> float:
    """Two-sided p of "both score the same", over all samples; nan without one."""
    return paired_p(*(np.concatenate([[], *side]) for side in zip(*groups, strict=True))) if groups else np.nan


def difference(groups: Groups) -> Interval:
    """Macro score of one side minus the other's, with its 95% interval.

    Source: Newcombe 1998, Statistics in Medicine 17:2635 (paired, from the score intervals of both sides); for
    averages Zou and Donner 2008, doi:10.1002/sim.3095.
    """
    return apart(*_means(groups), _correlation(groups))


def apart(x: Interval, y: Interval, correlation: float = 0.0) -> Interval:
    """x - y with its interval, from those of both."""

    def width(a: float, b: float) -> float:
        return sqrt(max(a * a + b * b - 2 * correlation * a * b, 0.0))

    mean = x.mean - y.mean
    low = mean - width(x.mean - x.low, y.high - y.mean)
    return Interval(mean, low, mean + width(x.high - x.mean, y.mean - y.low), min(x.n, y.n))


def retained(groups: Groups) -> Interval:
    """Macro score of one side as a share of the other's, with its 95% interval; nan where the other has none.

    Source: Donner and Zou 2012, Statistical Methods in Medical Research 21:347 (a ratio from intervals of its parts).
    """
    x, y = _means(groups)
    r = _correlation(groups)
    if not y.mean > 0:
        return Interval(np.nan, np.nan, np.nan, x.n)

    def end(a: float, b: float, sign: int) -> float:
        under = b * (2 * y.mean - b)
        if under <= 0:
            return inf if sign > 0 else 0.0
        middle = x.mean * y.mean - r * abs(x.mean - a) * abs(y.mean - b)
        return (middle + sign * sqrt(max(middle**2 - a * (2 * x.mean - a) * under, 0.0))) / under

    return Interval(x.mean / y.mean, max(end(x.low, y.high, -1), 0.0), end(x.high, y.low, 1), x.n)


def _means(groups: Groups) -> tuple[Interval, Interval]:
    one, other = (macro_interval([mean_interval(side) for side in sides]) for sides in zip(*groups, strict=True))
    return one, other


def _correlation(groups: Groups) -> float:
    """Of both macro scores; 0 where one side does not vary."""
    both, one, other = (
        sum(float(np.mean((x - x.mean()) * (y - y.mean()))) / len(x) for x, y in pairs)
        for pairs in (groups, [(a, a) for a, _ in groups], [(b, b) for _, b in groups])
    )
    return both / sqrt(one * other) if one > 0 and other > 0 else 0.0
