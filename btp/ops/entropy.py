"""Entropy of the gray levels of a patch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

GRAYS = ("paper", "official")
LEVELS = 256


def gray_levels(pixels: Tensor, gray: str, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Gray levels of normalised pictures.

    Args:
        pixels: [P, 3, height, width] as a vision tower gets them: (x / 255 - mean) / std.
        gray: paper, the mean of the channels in 0..255 | official, as the released code computes it: of the normalised
            values, times 255 and cut to unsigned 8 bit, so that negative ones wrap around.
        mean, std: Mean and deviation of the normalisation, one number per channel; not used for official.

    Returns:
        [P, height, width] int64 in 0..255.

    Raises:
        ValueError: gray is unknown, or mean and std are not three numbers each.

    Source: Yang et al. 2025, arXiv:2508.05211, section 3.2. Where paper and code differ the code is mistaken.
    """
    if gray not in GRAYS:
        raise ValueError(f"pruner.method.entropy is {gray!r}. Choose from: {', '.join(GRAYS)}.")
    pixels = pixels.float()
    if gray == "official":
        channels = (pixels * 255).trunc().remainder(LEVELS)
        return (channels * 0.3333).sum(1).round().long()
    for key, value in (("mean", mean), ("std", std)):
        if len(value) != pixels.shape[1]:
            raise ValueError(f"pruner.method.{key} is {list(value)!r}. Write one number per colour channel.")
    scale, shift = (pixels.new_tensor(tuple(v)).view(1, -1, 1, 1) for v in (std, mean))
    channels = (pixels * scale + shift) * 255
    return channels.mean(1).round().clamp(0, LEVELS - 1).long()


def patch_entropy(gray: Tensor, patches: int) -> Tensor:
    """Entropy of each patch's histogram of gray levels, in bits.

    Patches are square, as many as a tower's convolution makes of the picture; what is left over at the right and the
    lower side belongs to none.

    Args:
        gray: [P, height, width] integers in 0..255.
        patches: N, of a picture.

    Returns:
        [P, N] float32, row by row.

    Raises:
        ValueError: no square patches give that number.
    """
    P, height, width = gray.shape
    side = patch_side(height, width, patches)
    rows, columns = height // side, width // side
    tiles = gray[:, : rows * side, : columns * side].reshape(P, rows, side, columns, side)
    tiles = tiles.transpose(2, 3).reshape(P, patches, side * side)
    counts = torch.zeros(P, patches, LEVELS, device=gray.device)
    counts.scatter_add_(2, tiles, torch.ones_like(tiles, dtype=counts.dtype))
    share = counts / (side * side)
    return -torch.special.xlogy(share, share).sum(2) / math.log(2)


def patch_side(height: int, width: int, patches: int) -> int:
    """Pixels a side of square patches that a picture has `patches` of; the largest where several sides fit.

    Raises:
        ValueError: there is no such side.
    """
    largest = int((height * width / max(patches, 1)) ** 0.5)
    for side in range(largest, 0, -1):
        if (height // side) * (width // side) == patches:
            return side
    raise ValueError(
        f"A picture of {height} x {width} pixels cannot be cut into {patches} square patches, so their entropy has no "
        "meaning. Set pruner.method.alpha to 0."
    )
