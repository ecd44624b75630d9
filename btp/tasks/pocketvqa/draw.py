"""Paints a layout: coloured shapes and handwritten digits on a textured background."""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from btp.tasks.pocketvqa.digits import digit_images
from btp.tasks.pocketvqa.layout import COLORS, SIDE, Thing


def paint(things: list[Thing], split: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Paint `things` with digits of `split`.

    Returns:
        [96, 96, 3] RGB.
    """
    picture = background(rng)
    for thing in things:
        x0, y0, x1, y1 = (round(v * SIDE) for v in thing.box)
        alpha = _mask(thing, x1 - x0, y1 - y0, split, rng)[..., None]
        color = np.array(COLORS[thing.color], np.float32) * rng.uniform(0.88, 1.08)
        spot = picture[y0:y1, x0:x1]
        picture[y0:y1, x0:x1] = spot * (1 - alpha) + color * alpha
    picture += 3 * rng.standard_normal(picture.shape, np.float32)
    return picture.clip(0, 255, out=picture).astype(np.uint8)


def _mask(thing: Thing, width: int, height: int, split: str, rng: np.random.Generator) -> NDArray[np.float32]:
    if thing.kind == "shape":
        return shape_mask(thing.name, width)
    edges = np.linspace(0, width, len(thing.name) + 1).round().astype(int)
    mask = np.zeros((height, width), np.float32)
    for digit, left, right in zip(thing.name, edges[:-1], edges[1:], strict=True):
        mask[:, left:right] = digit_mask(int(digit), right - left, height, split, rng)
    return mask


def digit_mask(digit: int, width: int, height: int, split: str, rng: np.random.Generator) -> NDArray[np.float32]:
    """A handwritten digit of `split`, drawn by `rng` and turned a little.

    Returns:
        [height, width] ink in [0, 1].
    """
    images = digit_images(split)[digit]
    glyph = Image.fromarray((images[rng.integers(len(images))] * 255).astype(np.uint8))
    glyph = glyph.rotate(float(rng.uniform(-8, 8)), Image.Resampling.BILINEAR)
    wide = np.asarray(glyph.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
    return (wide * 1.5).clip(0, 1)


@cache
def shape_mask(name: str, side: int) -> NDArray[np.float32]:
    """A shape of pocketvqa with smooth edges, as [side, side] in [0, 1]; a star unless the name is another's."""
    scale = 4
    n = side * scale - 1
    canvas = Image.new("L", (side * scale, side * scale))
    pen = ImageDraw.Draw(canvas)
    if name == "circle":
        pen.ellipse((0, 0, n, n), fill=255)
    elif name == "square":
        pen.rectangle((n * 0.06, n * 0.06, n * 0.94, n * 0.94), fill=255)
    elif name == "triangle":
        pen.polygon([(n / 2, 0), (n, n), (0, n)], fill=255)
    elif name == "cross":
        pen.rectangle((n * 0.34, 0, n * 0.66, n), fill=255)
        pen.rectangle((0, n * 0.34, n, n * 0.66), fill=255)
    else:
        angle = np.arange(10) * np.pi / 5
        radius = np.where(np.arange(10) % 2 == 0, 0.55, 0.22) * n
        points = np.stack([n / 2 + radius * np.sin(angle), n * 0.53 - radius * np.cos(angle)], 1)
        pen.polygon([(float(x), float(y)) for x, y in points], fill=255)
    small = canvas.resize((side, side), Image.Resampling.BOX)
    return np.asarray(small, np.float32) / 255


def background(rng: np.random.Generator) -> NDArray[np.float32]:
    """A muted tone with stripes, checks or blotches, weaker than any object's colour, as [96, 96, 3] RGB."""
    y, x = np.ogrid[0:SIDE, 0:SIDE]
    tone = rng.uniform(70, 150) + rng.uniform(-14, 14, 3)
    kind = rng.integers(3)
    if kind == 0:
        angle, pitch = rng.uniform(0, np.pi), rng.uniform(5, 16)
        wave = np.sin(((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / pitch).astype(np.float32))
    elif kind == 1:
        pitch = rng.integers(4, 13)
        wave = ((x // pitch + y // pitch) % 2) * 2 - 1
    else:
        coarse = rng.normal(0, 1, (8, 8)).astype(np.float32)
        wave = np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    strength = rng.uniform(6, 20) * rng.uniform(0.7, 1.3, 3)
    return tone.astype(np.float32) + wave.astype(np.float32)[..., None] * strength.astype(np.float32)
