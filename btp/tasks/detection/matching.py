"""Matching of bounding boxes by IoU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Found = Sequence[Any]  # name, score, x0, y0, x1, y1 in shares of the picture's sides
HALF = 0.5  # IoU from which on two boxes of one name are the same


def sure(found: Sequence[Found], threshold: float) -> list[Found]:
    """Those with a score of `threshold` or more."""
    return [box for box in found if box[1] >= threshold]


def iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Share that two boxes (x0, y0, x1, y1) have in common of what they cover together."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(wide, 0.0) * max(high, 0.0)
    either = _area(one) + _area(other) - shared
    return shared / either if either > 0 else 0.0


def matched(found: Sequence[Found], truth: Sequence[Found], least: float = HALF) -> list[tuple[int, int]]:
    """Pairs (place in `found`, place in `truth`) of one name and an IoU of `least` or more, each used once.

    The surest box comes first and takes the one that it overlaps most, as COCO's evaluation does.
    """
    pairs: list[tuple[int, int]] = []
    free = set(range(len(truth)))
    for i in sorted(range(len(found)), key=lambda i: -found[i][1]):
        overlaps = {j: iou(found[i][2:], truth[j][2:]) for j in sorted(free) if truth[j][0] == found[i][0]}
        best = max(overlaps, key=overlaps.__getitem__, default=None)
        if best is not None and overlaps[best] >= least:
            pairs.append((i, best))
            free.remove(best)
    return pairs


def agreement(found: Sequence[Found], truth: Sequence[Found]) -> float:
    """F1 of two sets of boxes, 1 where both are empty."""
    if not found and not truth:
        return 1.0
    return 2 * len(matched(found, truth)) / (len(found) + len(truth))


def _area(box: Sequence[float]) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)
