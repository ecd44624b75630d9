"""Solves stage counts for a layer-averaged budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache


class OutOfReach(ValueError):
    """Error: no counts meet a budget.

    Attributes:
        budget: what was asked, in visual tokens averaged over the layers.
        nearest: the nearest that the stages reach.
    """

    def __init__(self, message: str, budget: float, nearest: float) -> None:
        super().__init__(message)
        self.budget, self.nearest = budget, nearest

    def of(self, unit: str) -> OutOfReach:
        """The error with another name for tokens."""
        return OutOfReach(str(self).replace("visual tokens", unit), self.budget, self.nearest)


@dataclass(frozen=True)
class Knob:
    """What is known about the count of one stage.

    Attributes:
        first: first decoder layer it acts on.
        count: tokens kept, None where free.
        times: X of `fit*X`, None for a plain `fit`; only where free.
        of: index of the stage that X refers to.
        least: fewest tokens that may stay; only where free.
    """

    first: int
    count: int | None = None
    times: float | None = None
    of: int = 0
    least: int = 1

    @property
    def plain(self) -> bool:
        """True for a `fit` that nothing else decides."""
        return self.count is None and self.times is None


def fit_counts(
    knobs: Sequence[Knob], total: int, num_layers: int, budget: float, nearest: bool = False
) -> list[int | None]:
    """Counts of all stages, the free ones filled so that the mean over layers comes nearest to `budget`.

    Profile: the first plain fit keeps t * total, each later one max(t, 1/2) of the one before; t in (0, 1). A stage
    with `times` keeps that many times the count of the one it refers to, rounded, at least 1 and no more than are
    alive.

    Args:
        knobs: one per stage, in order; `first` ascends.
        total: visual tokens before any stage.
        num_layers: decoder layers.
        budget: wanted mean of visual tokens over the layers.
        nearest: take the nearest that can be reached where the budget cannot.

    Returns:
        Strictly decreasing counts around every plain fit; None for a stage with `times` that would change nothing.

    Raises:
        ValueError: free stages have no room between written numbers.
        OutOfReach: the budget lies outside what the free stages can reach.
    """
    ends = [*(knob.first for knob in knobs[1:]), num_layers]
    spans = [max(0, min(end, num_layers) - knob.first) for knob, end in zip(knobs, ends, strict=True)]
    free = [i for i, knob in enumerate(knobs) if knob.plain]
    low, high = _bounds(knobs, total)

    def mean(values: Sequence[int | float]) -> float:
        return (total * knobs[0].first + sum(s * v for s, v in zip(spans, values, strict=True))) / num_layers

    def fill(t: float) -> list[float]:
        share = {i: total * t * max(t, 0.5) ** rank for rank, i in enumerate(free)}
        return [_inside(_wish(knob, share, i), low[i], high[i]) for i, knob in enumerate(knobs)]

    def whole(values: Sequence[float]) -> list[int]:
        return _derive(knobs, values, low, total)

    least, most = mean(whole(low)), mean(whole(high))
    grain = max(_weight(knobs, spans, i) for i in free) / num_layers / 2
    if not least - grain <= budget <= most + grain:
        near = least if budget < least else most
        if not nearest:
            raise OutOfReach(
                f"A budget of {budget:g} visual tokens on average cannot be met: with the first cut at layer "
                f"{knobs[0].first} of {num_layers} and {total} tokens the schedule reaches {least:.2f} to {most:.2f}. "
                f"The nearest is {near:.2f}, off by {abs(near - budget):.2f}. "
                "Set budget.share (or budget.tokens) within that, budget.nearest=true to run at the nearest, or move "
                "the stages.",
                budget,
                near,
            )
        budget = near
    below, above = 0.0, 1.0
    for _ in range(100):
        middle = (below + above) / 2
        below, above = (middle, above) if mean(fill(middle)) < budget else (below, middle)
    rounded = [round(value) for value in fill(above)]
    least_error = _least_error(knobs, spans, total, num_layers, budget)
    values = _polish(rounded, free, whole, lambda found: abs(mean(found) - budget), least_error)
    rows = zip(knobs, values, [total, *values[:-1]], strict=True)
    return [count if knob.times is None or count < alive else None for knob, count, alive in rows]


def _wish(knob: Knob, share: dict[int, float], i: int) -> float:
    """Tokens a stage would keep if no other stood in its way."""
    if knob.count is not None:
        return knob.count
    return share[i] if knob.times is None else knob.times * share[knob.of]


def _inside(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _weight(knobs: Sequence[Knob], spans: Sequence[int], i: int) -> float:
    """By how many tokens, summed over the layers, one token more at the free stage `i` changes the whole."""
    return spans[i] + sum(s * (k.times or 0.0) for s, k in zip(spans, knobs, strict=True) if k.times and k.of == i)


def _derive(knobs: Sequence[Knob], values: Sequence[float], low: Sequence[int], total: int) -> list[int]:
    """Whole counts from those of the plain fits: stages with `times` follow, and none keeps more than are alive."""
    out: list[int] = []
    for i, knob in enumerate(knobs):
        alive = out[-1] if out else total
        if knob.count is not None:
            out.append(knob.count)
        elif knob.times is None:
            out.append(max(low[i], min(int(values[i]), alive - 1)))
        else:
            reference = out[knob.of] if knob.of < i else int(values[knob.of])
            out.append(max(low[i], min(int(knob.times * reference + 0.5), alive)))
    return out


def _bounds(knobs: Sequence[Knob], total: int) -> tuple[list[int], list[int]]:
    """Tightest whole-token range of each free stage that still lets every plain fit and number withdraw something."""
    low, high = [0] * len(knobs), [total] * len(knobs)
    ceiling = total
    for i, knob in enumerate(knobs):
        ceiling = high[i] = knob.count if knob.count is not None else ceiling - knob.plain
    floor, strict = -1, 1
    for i in reversed(range(len(knobs))):
        knob = knobs[i]
        floor = low[i] = knob.count if knob.count is not None else max(knob.least, floor + strict)
        strict = knob.times is None
    for i, knob in enumerate(knobs):
        if knob.count is None and low[i] > high[i]:
            raise ValueError(
                f"schedule.{i}.keep: fit has no room: at least {low[i]} tokens must stay for the stages behind it, "
                f"but at most {high[i]} of {total} are left by those before it. Remove a stage."
            )
    return low, high


def _least_error(knobs: Sequence[Knob], spans: Sequence[int], total: int, num_layers: int, budget: float) -> float:
    """What no whole counts can go below; 0 where that is not known at once."""
    if any(knob.times is not None for knob in knobs):
        return 0.0
    step = math.gcd(*(span for knob, span in zip(knobs, spans, strict=True) if knob.plain)) or 1
    fixed = total * knobs[0].first + sum(s * (k.count or 0) for s, k in zip(spans, knobs, strict=True))
    over = (budget * num_layers - fixed) % step
    return min(over, step - over) / num_layers


@cache
def _moves(stages: int) -> list[tuple[int, ...]]:
    """Steps of that many counts, the smallest moves first."""
    steps = sorted(range(-3, 4) if stages <= 3 else range(-1, 2), key=abs)
    return sorted(itertools.product(steps, repeat=min(stages, 6)), key=lambda move: sum(map(abs, move)))


def _polish(
    counts: Sequence[int],
    free: Sequence[int],
    whole: Callable[[Sequence[float]], list[int]],
    error: Callable[[list[int]], float],
    least_error: float,
) -> list[int]:
    """Move free counts by a few tokens to the least error; of equals the smallest move wins."""
    best = whole(counts)
    while True:
        winner, least = best, float("inf")
        for move in _moves(len(free)):
            values = list(best)
            for i, step in zip(free[-6:], move, strict=True):
                values[i] += step
            found = whole(values)
            if all(found[i] == values[i] for i in free) and (off := round(error(found), 9)) < least:
                winner, least = found, off
                if least <= least_error + 1e-9:
                    return winner
        if winner == best:
            return best
        best = winner
