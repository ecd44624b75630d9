"""Checks of bounding boxes from files against their picture."""

from __future__ import annotations

from btp.tasks.sample import Box

SLACK = 2.0  # pixels that a box may reach beyond its picture: programs round


def box_within(box: Box, width: int, height: int, where: str, picture: str) -> Box:
    """(x0, y0, x1, y1) in pixels, cut off at the picture's edge.

    Args:
        where: file, entry and key, for messages.
        picture: its name, for messages.

    Raises:
        ValueError: it ends before it begins, or lies outside the picture.
    """
    x0, y0, x1, y1 = box
    if not (x0 <= x1 and y0 <= y1):
        raise ValueError(f"{where} ends before it begins: from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}). Correct it.")
    if min(x0, y0) < -SLACK or x1 > width + SLACK or y1 > height + SLACK:
        raise ValueError(
            f"{where} reaches from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}), outside of {picture}, which has {width} x "
            f"{height} pixels. Boxes are in pixels of the picture as it lies there; correct the box, or its size."
        )
    return (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
