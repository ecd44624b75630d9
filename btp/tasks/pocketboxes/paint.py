"""Paints things on clutter: lines, textured patches of the things' colours, shapes that are none of the kinds."""

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from btp.tasks.pocketboxes.scene import SIDE, Target, draw_color
from btp.tasks.pocketvqa.draw import background, digit_mask, shape_mask
from btp.tasks.pocketvqa.layout import COLORS

DECOYS = ("cross", "star")
_SHAPES = {"disc": "circle", "box": "square", "triangle": "triangle"}


def paint(
    targets: list[Target], split: str, rng: np.random.Generator, *, side: int = SIDE, clutter: float = 1.0
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Paint clutter and `targets` on it, with digits of `split`.

    Args:
        targets: what to paint; squares inside the picture that do not touch.
        split: train | calibration | validation | test.
        rng: source of everything drawn.
        side: Side of the picture in pixels, at most 96.
        clutter: how much of it, 1 = as the task has it; less is for training.

    Returns:
        [side, side, 3] RGB and [things, side, side] masks, true where a thing covers more than half of a pixel.
    """
    x, y = rng.integers(0, SIDE - side + 1, 2)
    picture = background(rng)[y : y + side, x : x + side].copy()
    _clutter(picture, rng, clutter)
    masks = np.zeros((len(targets), side, side), bool)
    for target, mask in zip(targets, masks, strict=True):
        spot = np.s_[target.y : target.y + target.side, target.x : target.x + target.side]
        ink = _ink(target, split, rng)
        _blend(picture[spot], ink * target.contrast, target.color, rng)
        mask[spot] = ink > 0.5
    picture += 4 * rng.standard_normal(picture.shape, np.float32)
    return picture.clip(0, 255, out=picture).astype(np.uint8), masks


def _ink(target: Target, split: str, rng: np.random.Generator) -> NDArray[np.float32]:
    if target.digit is not None:
        return digit_mask(target.digit, target.side, target.side, split, rng)
    return _ring(target.side) if target.name == "ring" else shape_mask(_SHAPES[target.name], target.side)


@cache
def _ring(side: int) -> NDArray[np.float32]:
    outer, hole = shape_mask("circle", side).copy(), side - 2 * max(2, round(side * 0.2))
    first = (side - hole) // 2
    outer[first : first + hole, first : first + hole] -= shape_mask("circle", hole)
    return outer.clip(0, 1)


def _blend(picture: NDArray[np.float32], alpha: NDArray[np.floating], color: str, rng: np.random.Generator) -> None:
    """Lay a colour over `picture`, plain or in stripes of two shades."""
    tone = np.array(COLORS[color], np.float32) * rng.uniform(0.85, 1.1)
    tone = np.broadcast_to(tone, picture.shape)
    if rng.random() < 0.5:
        rows, cols = np.ogrid[: picture.shape[0], : picture.shape[1]]
        angle, pitch = rng.uniform(0, np.pi), rng.uniform(3, 7)
        wave = np.sin((cols * np.cos(angle) + rows * np.sin(angle)) * (2 * np.pi / pitch))
        tone = tone * (1 + rng.uniform(0.1, 0.3) * wave[..., None]).astype(np.float32)
    alpha = alpha[..., None]
    picture *= 1 - alpha
    picture += tone * alpha


def _clutter(picture: NDArray[np.float32], rng: np.random.Generator, clutter: float) -> None:
    side = len(picture)
    share = clutter * (side / SIDE) ** 2
    for _ in range(round(rng.integers(2, 7) * share)):
        _stroke(picture, _blob, rng)
    for _ in range(round(rng.integers(1, 4) * share)):
        decoy, size = DECOYS[rng.integers(len(DECOYS))], int(rng.integers(8, 25))
        x, y = rng.integers(0, side - size + 1, 2)
        alpha = shape_mask(decoy, size) * np.float32(rng.uniform(0.4, 1))
        _blend(picture[y : y + size, x : x + size], alpha, draw_color(rng), rng)
    for _ in range(round(rng.integers(3, 8) * share)):
        _stroke(picture, _line, rng)


def _stroke(picture: NDArray[np.float32], draw: Callable, rng: np.random.Generator) -> None:
    canvas = Image.new("L", picture.shape[:2])
    draw(ImageDraw.Draw(canvas), len(picture), rng)
    opacity, color = np.float32(rng.uniform(0.3, 0.9)), draw_color(rng)
    box = canvas.getbbox()
    if box:  # else it lies outside the picture
        x0, y0, x1, y1 = box
        alpha = np.asarray(canvas.crop(box), np.float32) / 255
        _blend(picture[y0:y1, x0:x1], alpha * opacity, color, rng)


def _blob(pen: ImageDraw.ImageDraw, side: int, rng: np.random.Generator) -> None:
    corners = rng.integers(5, 9)
    angle = (np.arange(corners) + rng.uniform(-0.35, 0.35, corners)) * (2 * np.pi / corners)
    reach = rng.uniform(5, 15) * rng.uniform(0.5, 1.3, corners)
    points = rng.uniform(0, side, 2) + np.stack([np.cos(angle), np.sin(angle)], 1) * reach[:, None]
    pen.polygon([(x, y) for x, y in points.tolist()], fill=255)


def _line(pen: ImageDraw.ImageDraw, side: int, rng: np.random.Generator) -> None:
    start, angle, length = rng.uniform(0, side, 2), rng.uniform(0, 2 * np.pi), rng.uniform(10, side)
    end = start + length * np.array([np.cos(angle), np.sin(angle)])
    pen.line([*start.tolist(), *end.tolist()], fill=255, width=int(rng.integers(1, 4)))
