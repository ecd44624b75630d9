"""Tokens split by frame: the tokens of each frame of each image as a row of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_FAR = 1 << 16  # more than a prompt has images or a video frames


@dataclass(frozen=True)
class Apart:
    """G frames, the longest of n tokens.

    Attributes:
        index: [G, n] which of its row's N tokens each is, ascending; -1 padded at the end.
        row: [G] which row the frame belongs to; `rows` the same, known to the host. Frames of a row follow each other.
        sizes: tokens of each frame.
    """

    index: Tensor
    row: Tensor
    rows: tuple[int, ...]
    sizes: tuple[int, ...]

    def back(self, x: Tensor, into: Tensor) -> Tensor:
        """`into` [B, N] with the values of x [G, n] in the places of the tokens."""
        real = self.index >= 0
        into = into.clone()
        into[self.row[:, None].expand_as(self.index)[real], self.index[real]] = x[real].to(into.dtype)
        return into


def frames_apart(image: Tensor, frame: Tensor, valid: Tensor) -> Apart:
    """Sort the valid tokens of [B, N] by row, image and frame. Waits for the device."""
    batch = torch.arange(len(image), device=image.device)[:, None]
    at = ((batch * _FAR + image) * _FAR + frame)[valid]
    keys, group, sizes = at.unique(return_inverse=True, return_counts=True)
    row = keys // _FAR**2
    order = group.argsort(stable=True)
    place = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[group[order]]
    rows, lengths = torch.stack([row, sizes]).tolist()
    index = torch.full((len(keys), max(lengths, default=0)), -1, device=image.device)
    index[group[order], place] = valid.nonzero()[order, 1]
    return Apart(index, row, tuple(rows), tuple(lengths))


def shared_out(counts: Sequence[int], rows: Sequence[int], sizes: Sequence[int]) -> tuple[int, ...]:
    """Each row's count among its frames, in proportion to their tokens; what is left over goes to the first ones.

    Args:
        counts: per row, at most its tokens.
        rows: which row each frame belongs to.
        sizes: tokens of each frame.
    """
    found = [0] * len(sizes)
    for row, count in enumerate(counts):
        mine = [g for g, r in enumerate(rows) if r == row]
        total = sum(sizes[g] for g in mine)
        for g in mine:
            found[g] = count * sizes[g] // total
        left = count - sum(found[g] for g in mine)
        for g in [g for g in mine if found[g] < sizes[g]][:left]:
            found[g] += 1
    return tuple(found)
