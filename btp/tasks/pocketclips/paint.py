"""Paints a clip event by event: its thing and its sign over a ground that stands still or drifts."""

import numpy as np
from numpy.typing import NDArray

from btp.tasks.pocketclips.scene import FRAMES, SIDE, Event
from btp.tasks.pocketvqa.draw import background, digit_mask, shape_mask
from btp.tasks.pocketvqa.layout import COLORS


def paint(events: list[Event], split: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Paint `events` with digits of `split`.

    Returns:
        [FRAMES, 64, 64, 3] RGB.
    """
    frames = np.concatenate([_event(event, split, rng) for event in events])
    assert len(frames) == FRAMES
    frames += 3 * rng.standard_normal(frames.shape, np.float32)
    return frames.clip(0, 255, out=frames).astype(np.uint8)


def _event(event: Event, split: str, rng: np.random.Generator) -> NDArray[np.float32]:
    count = event.end - event.first
    ground = background(rng) * event.light
    slack = len(ground) - SIDE
    drift = rng.uniform(-2, 2, 2) if event.busy else np.zeros(2)
    windows = (slack / 2 + drift * (np.arange(count)[:, None] - count / 2)).round().astype(int).clip(0, slack)
    frames = np.stack([ground[y : y + SIDE, x : x + SIDE] for x, y in windows])
    color = np.array(COLORS[event.color], np.float32) * rng.uniform(0.88, 1.08)
    alpha = shape_mask(event.name, int(event.boxes[0, 2] - event.boxes[0, 0]))[..., None]
    for frame, (x0, y0, x1, y1) in zip(frames, event.boxes, strict=True):
        frame[y0:y1, x0:x1] = frame[y0:y1, x0:x1] * (1 - alpha) + color * alpha
    if event.sign is not None:
        x0, y0, x1, y1 = event.sign.box
        edges = np.linspace(0, x1 - x0, len(event.sign.name) + 1).round().astype(int)
        digits = zip(event.sign.name, edges[:-1], edges[1:], strict=True)
        mask = [digit_mask(int(d), right - left, y1 - y0, split, rng) for d, left, right in digits]
        alpha = np.concatenate(mask, 1)[..., None]
        color = np.array(COLORS[event.sign.color], np.float32) * rng.uniform(0.88, 1.08)
        frames[:, y0:y1, x0:x1] = frames[:, y0:y1, x0:x1] * (1 - alpha) + color * alpha
    return frames
