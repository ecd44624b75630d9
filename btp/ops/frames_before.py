"""Temporal differences of video tokens: each token and the one at its place some frames before."""

from __future__ import annotations

import torch
from torch import Tensor

from btp.ops.recycle import cell_numbers

_SIDE = 1 << 12  # more than any grid has rows or columns
_FRAMES = 1 << 16  # more than any video has frames
NO_FRAME = 3.0  # distance of a token that has none before it: more than any two can be apart


def before(image: Tensor, coord: Tensor, valid: Tensor, step: Tensor | int = 1) -> Tensor:
    """The token at the same row and column, `step` frames before in the same video. No host sync.

    Args:
        image: [B, N] which video of the row.
        coord: [B, N, 3] frame, row, column; -1 off the grid.
        valid: [B, N] bool.
        step: frames to go back, one for all or [B, N].

    Returns:
        [B, N] index into N; -1 where there is no such token.
    """
    on_grid = valid & (coord[..., 1] >= 0)
    place = ((image.clamp(min=0) * _FRAMES + coord[..., 0]) * _SIDE + coord[..., 1]) * _SIDE + coord[..., 2]
    last = torch.iinfo(torch.int64).max
    ordered, order = place.masked_fill(~on_grid, last).sort(dim=1)
    wanted = place - step * _SIDE**2
    at = torch.searchsorted(ordered, wanted).clamp(max=place.shape[1] - 1)
    found = on_grid & (ordered.gather(1, at) == wanted) & (coord[..., 0] >= step)
    return order.gather(1, at).masked_fill(~found, -1)


def distance_before(x: Tensor, index: Tensor) -> Tensor:
    """[B, N] one minus the cosine of each token and the one that `index` [B, N] names; NO_FRAME for -1.

    Made in float32 or better.
    """
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    other = x.gather(1, index.clamp(min=0)[..., None].expand_as(x))
    return (1 - torch.cosine_similarity(x, other, dim=-1)).masked_fill(index < 0, NO_FRAME)


def frame_numbers(image: Tensor, coord: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Number the frames of each row, whichever video they are of, in order. No host sync.

    Args:
        image, coord, valid: as `before`.

    Returns:
        [B, N] in 0..N-1, -1 off the grid and where padded; [B, N] how many tokens each number has.
    """
    region = image.clamp(min=0) * _FRAMES + coord[..., 0].clamp(min=0)
    number = cell_numbers(region, coord[..., 1:], float(_FRAMES), valid)
    ones = torch.ones_like(number)
    sizes = ones.new_zeros(len(number), number.shape[1] + 1)
    return number, sizes.scatter_add(1, number.masked_fill(number < 0, number.shape[1]), ones)[:, :-1]
