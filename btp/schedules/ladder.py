"""Token counts over the layers of a vision tower that merges a constant number in each."""

from __future__ import annotations

from itertools import pairwise


def ladder(before: int, final: int, steps: int, halving: bool, exact: bool) -> list[int]:
    """Counts behind each of `steps` layers that take `before` tokens down to `final` by a constant number each.

    Args:
        before: tokens in front of the first layer.
        final: tokens wanted behind the last one, final <= before.
        steps: layers, 1 or more.
        halving: no layer may drop more than half of what is alive, as where tokens are merged in pairs.
        exact: the last layer must end at `final`, so that earlier ones drop more where halving holds it back;
            otherwise what is left to drop is somebody else's.

    Returns:
        Counts, not increasing; equal neighbours are layers that drop nothing.
    """
    counts = [before - (2 * (before - final) * step + steps) // (2 * steps) for step in range(steps + 1)]
    if not halving:
        return counts[1:]
    if exact:
        for i in reversed(range(1, steps)):
            counts[i] = min(counts[i], 2 * counts[i + 1])
    for i in range(1, steps + 1):
        counts[i] = max(counts[i], (counts[i - 1] + 1) // 2)
    return counts[1:]


def shortest(before: int, steps: int) -> int:
    """Fewest tokens that `steps` halvings leave of `before`."""
    for _ in range(steps):
        before = (before + 1) // 2
    return before


def falls(before: int, counts: list[int]) -> list[bool]:
    """Which entries are less than the one in front of them."""
    return [after < alive for alive, after in pairwise([before, *counts])]
