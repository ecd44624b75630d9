"""Scenes for detection: things of five kinds that do not touch."""

from dataclasses import dataclass

import numpy as np

from btp.tasks.pocketvqa.layout import COLORS

SIDE = 96
NAMES = ("disc", "box", "triangle", "ring", "digit")
SMALLEST, LARGEST = 8, 32  # sides in pixels
_SMALLEST_DIGIT = 12


@dataclass(frozen=True)
class Target:
    """One thing to be found.

    Attributes:
        name: one of NAMES.
        digit: which digit it is; None for the others.
        color: a colour of pocketvqa.
        contrast: how far its colour covers the ground, in (0, 1].
        x, y: first column and row in pixels.
        side: Side of the square that it is drawn into, in pixels; the box of its mask may be narrower.
    """

    name: str
    digit: int | None
    color: str
    contrast: float
    x: int
    y: int
    side: int


def draw_targets(rng: np.random.Generator) -> list[Target]:
    """Draw 1 to 4 things of 8 to 32 pixels, none touching another."""
    targets: list[Target] = []
    for _ in range(rng.choice(4, p=(0.05, 0.15, 0.3, 0.5)) + 1):
        name = NAMES[rng.integers(len(NAMES))]
        smallest = _SMALLEST_DIGIT if name == "digit" else SMALLEST
        side = round(rng.uniform(smallest**2, LARGEST**2) ** 0.5)  # even in area
        digit = int(rng.integers(10)) if name == "digit" else None
        color, contrast = draw_color(rng), float(rng.uniform(0.5, 1))
        for _ in range(20):
            x, y = (int(v) for v in rng.integers(0, SIDE - side + 1, 2))
            if all(_apart(x, y, side, t) for t in targets):
                targets.append(Target(name, digit, color, contrast, x, y, side))
                break
    return targets


def draw_color(rng: np.random.Generator) -> str:
    """Draw a colour's name."""
    return list(COLORS)[rng.integers(len(COLORS))]


def _apart(x: int, y: int, side: int, other: Target) -> bool:
    beside = x >= other.x + other.side or other.x >= x + side
    return beside or y >= other.y + other.side or other.y >= y + side
