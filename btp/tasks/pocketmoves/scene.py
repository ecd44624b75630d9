"""Scenes of moving things: one red thing whose shape and motion are the class, among things of other colours."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from btp.tasks.pocketvqa.layout import COLORS

SIDE = 64
FRAMES = 16
JITTER = 1  # pixels that the camera shakes by, along each axis
ACTOR = "red"
SHAPES = ("circle", "square", "triangle", "cross")
MOVES = ("left", "right", "up", "down", "clockwise", "counterclockwise")
CLASSES = tuple(f"{shape} {move}" for shape in SHAPES for move in MOVES)
STILL = "still"

_STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_NAMES = (*SHAPES, "star", *"0123456789")


@dataclass(frozen=True)
class Mover:
    """One thing of a clip.

    Attributes:
        name: a shape of pocketvqa or a digit.
        color: a colour of pocketvqa.
        move: one of MOVES, or still.
        boxes: [FRAMES, 4] pixels (x0, y0, x1, y1) where the camera stands still, ends exclusive.
    """

    name: str
    color: str
    move: str
    boxes: NDArray[np.int64]


def draw_movers(rng: np.random.Generator, label: int) -> list[Mover]:
    """Draw the things of a clip of class `label`: 2 to 4 others from back to front, and the red one in front of them.

    Every thing stays inside the picture in all frames, whatever the camera does.
    """
    others = [c for c in COLORS if c != ACTOR]
    movers = []
    for _ in range(rng.integers(2, 5)):
        name, color = _NAMES[rng.integers(len(_NAMES))], others[rng.integers(len(others))]
        move = (*MOVES, STILL)[rng.integers(len(MOVES) + 1)]
        movers.append(Mover(name, color, move, _boxes(rng, move, int(rng.integers(9, 17)))))
    shape, move = CLASSES[label].split()
    movers.append(Mover(shape, ACTOR, move, _boxes(rng, move, int(rng.integers(10, 15)))))
    return movers


def _boxes(rng: np.random.Generator, move: str, side: int) -> NDArray[np.int64]:
    time = np.arange(FRAMES)[:, None]
    if move in _STEPS:
        way = np.array(_STEPS[move]) * rng.uniform(1.0, 1.8)
        path = (way + way[::-1] * rng.uniform(-0.15, 0.15)) * time
    elif move == STILL:
        path = np.zeros((FRAMES, 2))
    else:
        turn = (1 if move == "clockwise" else -1) * rng.uniform(0.8, 1.2) * 2 * np.pi / (FRAMES - 1)
        angle = rng.uniform(0, 2 * np.pi) + turn * time[:, 0]
        path = rng.uniform(7, 11) * np.stack([np.cos(angle), np.sin(angle)], 1)
    low = JITTER - path.min(0)
    high = SIDE - JITTER - side - path.max(0)
    corner = np.floor(path + rng.uniform(low, high)).astype(int).clip(JITTER, SIDE - JITTER - side)
    return np.concatenate([corner, corner + side], 1)
