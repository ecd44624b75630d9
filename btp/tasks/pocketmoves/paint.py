"""Paints a clip: things move over a drifting textured ground, seen by a camera that shakes."""

import numpy as np
from numpy.typing import NDArray

from btp.tasks.pocketmoves.scene import FRAMES, JITTER, SIDE, Mover
from btp.tasks.pocketvqa.draw import background, digit_mask, shape_mask
from btp.tasks.pocketvqa.layout import COLORS


def paint(movers: list[Mover], split: str, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Paint `movers` from the first to the last, with digits of `split`.

    Returns:
        [FRAMES, 64, 64, 3] RGB and [things, FRAMES, 4] boxes in pixels (x0, y0, x1, y1) as the camera sees them.
    """
    ground = background(rng)
    slack = len(ground) - SIDE
    shake = rng.integers(-JITTER, JITTER + 1, (FRAMES, 2))
    drift = rng.uniform(-0.6, 0.6, 2) * np.arange(FRAMES)[:, None]
    windows = (slack / 2 + drift).round().astype(int) - shake
    frames = np.stack([ground[y : y + SIDE, x : x + SIDE] for x, y in windows])
    boxes = np.stack([m.boxes for m in movers]) + np.tile(shake, 2)
    for mover, places in zip(movers, boxes, strict=True):
        side = places[0, 2] - places[0, 0]
        digit = mover.name.isdigit()
        mask = digit_mask(int(mover.name), side, side, split, rng) if digit else shape_mask(mover.name, int(side))
        color = np.array(COLORS[mover.color], np.float32) * rng.uniform(0.88, 1.08)
        alpha = mask[..., None]
        for frame, (x0, y0, x1, y1) in zip(frames, places, strict=True):
            frame[y0:y1, x0:x1] = frame[y0:y1, x0:x1] * (1 - alpha) + color * alpha
    frames += 3 * rng.standard_normal(frames.shape, np.float32)
    return frames.clip(0, 255, out=frames).astype(np.uint8), boxes
