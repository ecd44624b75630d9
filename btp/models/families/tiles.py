"""Grid coordinates of visual tokens in pictures that the processor cut into tiles of one size."""

from __future__ import annotations

import torch
from torch import Tensor


def runs(visual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Placeholders that follow each other without text between them. No host sync.

    Args:
        visual: [B, S] bool.

    Returns:
        number [B, S], which run of its row a token belongs to, place [B, S] within it and length [B, S] of it; of no
        meaning for text.
    """
    before = torch.cat([torch.zeros_like(visual[:, :1]), visual[:, :-1]], dim=1)
    first = visual & ~before
    rank = visual.cumsum(1) - 1  # [B, S] among the visual tokens of the row
    place = rank - rank.masked_fill(~first, 0).cummax(1).values
    number = (first.cumsum(1) - 1).clamp(min=0)
    length = torch.zeros_like(rank).scatter_add(1, number, visual.to(rank.dtype)).gather(1, number)
    return number, place, length


def stacked(visual: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """A picture is a run of tiles whose last one shows all of it; a single tile is the whole picture. No host sync.

    Args:
        visual: [B, S] bool.
        rows, columns: Rows and columns of a tile.

    Returns:
        coord [B, S, 3] with the view of the whole in frame 0 and the tiles in frames 1, 2, ...; image [B, S].
    """
    number, place, length = runs(visual)
    tile, within = place // (rows * columns), place % (rows * columns)
    whole = tile == length // (rows * columns) - 1
    frame = (tile + 1).masked_fill(whole, 0)
    coord = torch.stack([frame, within // columns, within % columns], dim=-1)
    return coord.masked_fill(~visual[..., None], -1), number.masked_fill(~visual, -1)
