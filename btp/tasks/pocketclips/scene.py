"""Scenes of a clip: events one behind another, each with a ground, a light, a thing and how it moves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from btp.tasks.pocketvqa.layout import COLORS, SHAPES

SIDE = 64
FRAMES = 16
FEWEST, MOST = 3, 6  # events of a clip
MOVES = ("left", "right", "up", "down")
STILL = "still"
BAND = 28  # pixels at the top or the bottom that a sign takes
ALIKE = 0.3  # how often a thing repeats a shape or a colour of the clip

_STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), STILL: (0, 0)}


@dataclass(frozen=True)
class Sign:
    """Handwritten digits that stand still in an event.

    Attributes:
        name: the digits from left to right, one or two.
        color: a colour of pocketvqa.
        box: pixels (x0, y0, x1, y1), ends exclusive.
    """

    name: str
    color: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Event:
    """One event of a clip.

    Attributes:
        first, end: its frames, `end` exclusive.
        name, color: Shape and colour of its thing, as pocketvqa has them.
        move: one of MOVES, or still.
        boxes: [end - first, 4] pixels (x0, y0, x1, y1) of the thing.
        sign: what can be read in it, None where there is nothing.
        busy: its ground drifts.
        light: by which its ground is multiplied.
    """

    first: int
    end: int
    name: str
    color: str
    move: str
    boxes: NDArray[np.int64]
    sign: Sign | None
    busy: bool
    light: float

    @property
    def phrase(self) -> str:
        """How people call its thing: `red circle`."""
        return f"{self.color} {self.name}"

    @property
    def frames(self) -> tuple[int, ...]:
        """Numbers of its frames."""
        return tuple(range(self.first, self.end))


def draw_events(rng: np.random.Generator) -> list[Event]:
    """Draw the events of a clip in order: no two things of a colour and a shape, and one or two signs.

    The first sign drawn is the needle: its event lasts one or two frames.
    """
    count = int(rng.integers(FEWEST, MOST + 1))
    signed = [int(i) for i in rng.permutation(count)[: rng.integers(1, 3)]]
    spans = _spans(rng, count, needle=signed[0])
    colors = [str(c) for c in rng.permutation(list(COLORS))]  # of signs, so that each names one
    things: list[tuple[str, str]] = []
    events: list[Event] = []
    for i, (first, end) in enumerate(spans):
        things.append(_thing(rng, things))
        sign = _sign(rng, colors.pop(), number=rng.random() < 0.5) if i in signed else None
        move = (*MOVES, STILL)[rng.integers(len(MOVES) + 1)] if end - first > 1 else STILL
        boxes = _boxes(rng, move, end - first, _room(sign))
        color, name = things[-1]
        busy, light = bool(rng.random() < 0.5), float(rng.uniform(0.55, 1.25))
        events.append(Event(first, end, name, color, move, boxes, sign, busy, light))
    return events


def _spans(rng: np.random.Generator, count: int, needle: int) -> list[tuple[int, int]]:
    """First and behind the last frame of each event: all FRAMES, the needle's one or two, the others' two or more."""
    lengths = np.full(count, 2)
    lengths[needle] = rng.integers(1, 3)
    others = [i for i in range(count) if i != needle]
    weights = rng.dirichlet(np.full(len(others), 1.5))  # uneven, so that one is often the longest
    lengths[others] += rng.multinomial(FRAMES - lengths.sum(), weights)
    ends = np.cumsum(lengths)
    return [(int(end - n), int(end)) for end, n in zip(ends, lengths, strict=True)]


def _thing(rng: np.random.Generator, others: list[tuple[str, str]]) -> tuple[str, str]:
    """Colour and shape, in no other event together."""
    while True:
        colors = [c for c in COLORS if c not in {o[0] for o in others}]
        shapes = [s for s in SHAPES if s not in {o[1] for o in others}]
        color = str(rng.choice(colors if colors and rng.random() > ALIKE else list(COLORS)))
        shape = str(rng.choice(shapes if shapes and rng.random() > ALIKE else list(SHAPES)))
        if (color, shape) not in others:
            return color, shape


def _sign(rng: np.random.Generator, color: str, number: bool) -> Sign:
    name = "".join(str(d) for d in rng.integers(0, 10, 2 if number else 1))
    high = int(rng.integers(21, BAND - 1))
    wide = len(name) * int(rng.integers(high * 2 // 3, high + 1))
    x = int(rng.integers(1, SIDE - wide))
    y = int(rng.integers(1, BAND - high)) + (SIDE - BAND) * int(rng.integers(2))
    return Sign(name, color, (x, y, x + wide, y + high))


def _room(sign: Sign | None) -> tuple[int, int]:
    """First and behind the last row that the thing may take."""
    if sign is None:
        return 0, SIDE
    return (BAND, SIDE) if sign.box[1] < SIDE // 2 else (0, SIDE - BAND)


def _boxes(rng: np.random.Generator, move: str, frames: int, rows: tuple[int, int]) -> NDArray[np.int64]:
    side = int(rng.integers(14, 21))
    room = np.array([SIDE, rows[1] - rows[0]]) - side
    way = np.array(_STEPS[move])
    most = (room[np.abs(way).argmax()] - 1) / max(frames - 1, 1)
    path = way * min(6.0, float(most)) * rng.uniform(0.75, 1.0) * np.arange(frames)[:, None]
    corner = path + rng.uniform(-path.min(0), room - path.max(0)) + np.array([0, rows[0]])
    corner = np.floor(corner).astype(int)
    return np.concatenate([corner, corner + side], 1)
