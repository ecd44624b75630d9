"""Grid coordinates of visual tokens in their pictures, by way of packing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

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
    coord = coord.masked_scatter(visual[..., None], torch.cat(coords).to(visual.device, non_blocking=True))
    first = torch.zeros_like(visual).masked_scatter(visual, torch.cat(firsts).to(visual.device, non_blocking=True))
    return coord, first


def check_whole(counts: Sequence[int], each: int, model: str, pictures: Sequence[int] | int | None = None) -> None:
    """Refuse placeholders that are not whole pictures of `each` tokens.

    Args:
        counts: placeholders of each row.
        each: tokens of a picture, as the grid assumed has them.
        model: its class, for the message.
        pictures: tokens of each, or how many there are; None where nothing says so.

    Raises:
        ValueError: a row has a part of a picture, or there are more or fewer.
    """
    odd = next((b for b, n in enumerate(counts) if n % each), None)
    if odd is not None:
        raise ValueError(
            f"Row {odd} has {counts[odd]} placeholders, but a view of {model} has {each} tokens. {_REMEDY}"
        )
    alone = [] if pictures is None or isinstance(pictures, int) else [n for n in pictures if n != each]
    total = pictures if isinstance(pictures, int) else None
    if alone or (total is not None and total * each != sum(counts)):
        found = f"{alone[0]} tokens of a picture" if alone else f"{sum(counts)} placeholders for {total} picture(s)"
        raise ValueError(f"{model} makes {found}, but a view has {each} tokens. {_REMEDY}")


def check_lengths(counts: Sequence[int], sizes: Sequence[int], model: str, kind: str) -> None:
    """Refuse placeholders that do not end where a picture ends.

    Args:
        counts: placeholders of each row.
        sizes: tokens of each picture of the batch, in order.
        model: its class, for the message.
        kind: "image" or "video".

    Raises:
        ValueError: a row has a part of a picture, or there are more or fewer.
    """
    ends, rows = [0, *accumulate(sizes)], [0, *accumulate(counts)]
    if ends[-1] != rows[-1] or not set(rows) <= set(ends):
        raise ValueError(
            f"The rows of the prompt have {list(counts)} placeholders of kind {kind}, but by {kind}_grid_thw the "
            f"pictures have {list(sizes)} tokens in {model}. {_REMEDY}"
        )


_REMEDY = (
    "Make the prompt with the processor of this checkpoint, and pass it whole (no chunked prefill by "
    "prefill_chunk_size). If it was, this family packs its pictures in a way of its own: use its adapter in "
    "btp.models, or subclass LVLM and override layout (docs/new_model.md)."
)


def number(visual: Tensor, first: Tensor) -> Tensor:
    """[B, S] which picture of its row each visual token belongs to, 0-based; -1 for text.

    Args:
        visual: [B, S] bool.
        first: [B, S] bool, the first token of each picture.
    """
    return (first.cumsum(1) - 1).masked_fill(~visual, -1)
