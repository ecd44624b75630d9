"""Where each visual token lies in its picture: one rule per way of packing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def square(visual: Tensor, rows: int, columns: int, extra: int = 0) -> tuple[Tensor, Tensor]:
    """Every picture of the prompt has the same grid, read row by row. No host sync.

    Args:
        visual: [B, S] bool, visual tokens; the pictures of a row follow each other, text may lie between.
        rows, columns: the grid.
        extra: tokens in front of each grid that lie on no grid, such as a class token.

    Returns:
        coord [B, S, 3] (frame, row, column), -1 off the grid and for text, and first [B, S] bool, the first
        token of each picture.
    """
    rank = visual.cumsum(1) - 1
    within = rank % (rows * columns + extra) - extra
    coord = torch.stack([torch.zeros_like(within), within // columns, within % columns], dim=-1)
    off = ~visual | (within < 0)
    return coord.masked_fill(off[..., None], -1), visual & (within == -extra)


def packed(visual: Tensor, grids: Sequence[Sequence[int]], merge: int) -> tuple[Tensor, Tensor]:
    """Pictures of different grids, in the order in which the batch's placeholders meet them.

    Args:
        visual: [B, S] bool, the placeholders these grids belong to.
        grids: (frames, patch rows, patch columns) per picture or video.
        merge: patches per side that became one token.

    Returns:
        As `square`.
    """
    coords, firsts = [torch.zeros(0, 3, dtype=torch.long)], [torch.zeros(0, dtype=torch.bool)]
    for frames, rows, columns in grids:
        sides = [torch.arange(n) for n in (frames, rows // merge, columns // merge)]
        coord = torch.cartesian_prod(*sides).view(-1, 3)
        coords.append(coord)
        firsts.append(torch.arange(len(coord)) == 0)
    coord = torch.full((*visual.shape, 3), -1, device=visual.device)
    coord = coord.masked_scatter(visual[..., None], torch.cat(coords).to(visual.device))
    first = torch.zeros_like(visual).masked_scatter(visual, torch.cat(firsts).to(visual.device))
    return coord, first


def number(visual: Tensor, first: Tensor) -> Tensor:
    """[B, S] which picture of its row each visual token belongs to, 0-based; -1 for text.

    Args:
        visual: [B, S] bool.
        first: [B, S] bool, the first token of each picture.
    """
    return (first.cumsum(1) - 1).masked_fill(~visual, -1)
