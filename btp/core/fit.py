"""Solves stage counts for a layer-averaged budget."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence


def fit_counts(
    counts: Sequence[int | None], firsts: Sequence[int], total: int, num_layers: int, budget: float
) -> list[int]:
    """Fill the None entries of `counts` so that the mean over layers comes nearest to `budget`.

    Profile: the first free stage keeps t * total, each later one max(t, 1/2) of the one before; t in (0, 1).

    Args:
        counts: tokens kept per stage, None where free.
        firsts: first decoder layer each stage acts on, ascending.
        total: visual tokens before any stage.
        num_layers: decoder layers.
        budget: wanted mean of visual tokens over the layers.

    Returns:
        All counts, strictly decreasing around every free stage.

    Raises:
        ValueError: the budget lies outside what the free stages can reach.
    """
    ends = [*firsts[1:], num_layers]
    spans = [max(0, min(end, num_layers) - first) for first, end in zip(firsts, ends, strict=True)]
    free = [i for i, count in enumerate(counts) if count is None]
    low, high = _bounds(counts, free, total)

    def mean(values: Sequence[int | float]) -> float:
        return (total * firsts[0] + sum(s * v for s, v in zip(spans, values, strict=True))) / num_layers

    def fill(t: float) -> list[float]:
        share = [total * t * max(t, 0.5) ** free.index(i) if i in free else 0.0 for i in range(len(counts))]
        return [float(c) if c is not None else min(max(share[i], low[i]), high[i]) for i, c in enumerate(counts)]

    least, most = (mean([c if c is not None else b[i] for i, c in enumerate(counts)]) for b in (low, high))
    grain = max(spans[i] for i in free) / num_layers / 2
    if not least - grain <= budget <= most + grain:
        near, gap = (least, least - budget) if budget < least else (most, budget - most)
        raise ValueError(
            f"A budget of {budget:g} visual tokens on average cannot be met: with the first cut at layer "
            f"{firsts[0]} "
            f"of {num_layers} and {total} tokens the schedule reaches {least:.2f} to {most:.2f}. The nearest "
            "is "
            f"{near:.2f}, off by {gap:.2f}. Change the budget or move the stages."
        )
    below, above = 0.0, 1.0
    for _ in range(100):
        middle = (below + above) / 2
        below, above = (middle, above) if mean(fill(middle)) < budget else (below, middle)
    rounded = [round(value) for value in fill(above)]
    return _polish(rounded, free, low, high, lambda values: abs(mean(values) - budget))


def _bounds(counts: Sequence[int | None], free: Sequence[int], total: int) -> tuple[list[int], list[int]]:
    """Tightest whole-token range of each free stage that still lets every stage withdraw something."""
    low, high = [0] * len(counts), [total] * len(counts)
    ceiling = total
    for i, count in enumerate(counts):
        ceiling = high[i] = count if count is not None else ceiling - 1
    floor = -1
    for i in reversed(range(len(counts))):
        count = counts[i]
        floor = low[i] = count if count is not None else max(1, floor + 1)
    for i in free:
        if low[i] > high[i]:
            raise ValueError(
                f"schedule.{i}.keep: fit has no room: at least {low[i]} tokens must stay for the stages "
                "behind it, "
                f"but at most {high[i]} of {total} are left by those before it. Remove a stage."
            )
    return low, high


def _polish(
    counts: list[int],
    free: Sequence[int],
    low: Sequence[int],
    high: Sequence[int],
    error: Callable[[list[int]], float],
) -> list[int]:
    """Move free counts by a few tokens to the least error; of equals the smallest move wins."""
    best = list(counts)
    for i in free:
        best[i] = min(max(best[i], low[i]), high[i], best[i - 1] - 1 if i else high[i])
    for i in reversed(free):
        best[i] = max(best[i], best[i + 1] + 1 if i + 1 < len(best) else low[i])

    def allowed(values: Sequence[int]) -> bool:
        inside = all(low[i] <= values[i] <= high[i] for i in free)
        return inside and all(values[i - 1] > values[i] for i in range(1, len(values)) if i in free or i - 1 in free)

    steps = sorted(range(-3, 4) if len(free) <= 3 else range(-1, 2), key=abs)
    while True:
        tried = []
        for move in itertools.product(steps, repeat=min(len(free), 6)):
            values = list(best)
            for i, step in zip(free[-6:], move, strict=True):
                values[i] += step
            if allowed(values):
                tried.append((round(error(values), 9), sum(map(abs, move)), values))
        winner = min(tried, key=lambda entry: entry[:2])[2]
        if winner == best:
            return best
        best = winner
