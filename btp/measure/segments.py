"""Sequence lengths of a vision tower's attention: how many patches attend to each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from btp.measure.architecture import Encoder

Segments = Sequence[Sequence[int]]


def square(encoder: Encoder, images: int) -> Segments:
    """Lengths per layer where every picture has the same size and is one sequence.

    Args:
        encoder: Encoder with `patches` set.
        images: pictures that run through the tower, tiles counted one by one.

    Raises:
        ValueError: the tower takes pictures of any size.
    """
    if not encoder.patches:
        raise ValueError(
            "This vision tower takes pictures of any size, so their number alone does not give its cost. "
            "Pass segments=packed(encoder, grid) with the image_grid_thw of the inputs."
        )
    return [[encoder.patches + encoder.class_tokens] * images] * encoder.stack.layers


def packed(encoder: Encoder, grid: Iterable[Sequence[int]]) -> Segments:
    """Lengths per layer where pictures have any size, and most layers may see windows only (Qwen2.5-VL).

    Args:
        encoder: Encoder with `merge`, `window` and `full_layers`.
        grid: (frames, rows, columns) of each picture or video, in patches: the inputs' image_grid_thw.

    Returns:
        For each layer, the patches of each sequence; a frame is never seen from another.
    """
    frames: list[int] = []
    windows: list[int] = []
    for count, rows, columns in grid:
        frames += [rows * columns] * count
        down, across = (_pieces(side // encoder.merge, encoder.window) for side in (rows, columns))
        windows += [a * b * encoder.merge**2 for a in down for b in across] * count
    sees_all = [not encoder.window or i in encoder.full_layers for i in range(encoder.stack.layers)]
    return [frames if every else windows for every in sees_all]


def _pieces(length: int, window: int) -> list[int]:
    if not window:
        return [length]
    return [window] * (length // window) + ([length % window] if length % window else [])
