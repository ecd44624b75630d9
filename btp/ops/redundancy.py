"""How much each visual token is looked at by the others and by the text, and the grids that spread over a picture.

Source: Ye et al. 2024, arXiv:2412.00447, sections 3.2 and 3.3, as far as others report them (docs/fidelity.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from btp.ops.row_blocks import row_blocks


def received_inside(queries: Tensor, keys: Tensor, valid: Tensor, form: str) -> Tensor:
    """Attention that each visual token receives from the visual tokens, averaged over these and over heads.

    Args:
        queries: [B, Hq, N, d], scaled.
        keys: [B, Hkv, N, d]; grouped heads are not repeated.
        valid: [B, N] bool, tokens that are there, in any order.
        form: open (softmax over the visual tokens, whatever their order), causal (over those up to the one that
            looks), or logits (their mean).

    Returns:
        [B, N] in float32 or better; anything where not valid.
    """
    B, Hq, N, d = queries.shape
    exact = torch.promote_types(queries.dtype, torch.float32)
    grouped = queries.to(exact).view(B, keys.shape[1], Hq // keys.shape[1], N, d)
    columns = keys.to(exact).transpose(-1, -2)[:, :, None]
    real = valid.to(exact)[:, None, None]  # [B, 1, 1, N]
    index = torch.arange(N, device=valid.device)
    received = columns.new_zeros(B, Hq, N)
    for some in row_blocks(N, B * Hq * N * exact.itemsize, valid.device):
        looks = (grouped[:, :, :, some] @ columns).view(B, Hq, -1, N)
        if form != "logits":
            seen = valid[:, None, None, :]
            if form == "causal":
                seen = seen & (index <= index[some, None])
            seen = seen | (index == index[some, None])  # no row without any column
            looks = looks.masked_fill_(~seen, -torch.inf).softmax(-1)
        received += (real[..., some] @ looks).squeeze(2)
    return received.mean(1) / valid.sum(1).clamp(min=1)[:, None]


def received_from_text(attention: Tensor, rows_valid: Tensor) -> Tensor:
    """[B, N] attention from the text, averaged over its real rows and over heads.

    Args:
        attention: [B, H, T, N] probabilities.
        rows_valid: [B, T] bool.
    """
    real = rows_valid.to(attention.dtype)[:, None, :, None]
    return (attention * real).sum(2).mean(1) / rows_valid.sum(1).clamp(min=1)[:, None]


def spread_out(scores: Tensor, valid: Tensor) -> Tensor:
    """[B, N] scores of each row stretched from its lowest valid one, 0, to its highest, 1; 0 where all are alike."""
    low = scores.masked_fill(~valid, torch.inf).amin(1, keepdim=True)
    high = scores.masked_fill(~valid, -torch.inf).amax(1, keepdim=True)
    stretched = (scores - low) / (high - low).clamp(min=torch.finfo(scores.dtype).tiny)
    return stretched.masked_fill(~valid, 0.0).clamp(0.0, 1.0)


def grid_scores(coord: Tensor, strides: Sequence[int], weight: float) -> Tensor:
    """Score of the coarsest grid of every s-th row and column that a token lies on: 1 - weight / s**2; 0 off all grids.

    Args:
        coord: [B, N, 3] (frame, row, column); -1 for tokens off the picture's grid.
        strides: Strides of the grids, which all begin at row and column 0.
        weight: above 0; 3 spreads strides 2 to 12 from 0.25 to 0.979.

    Returns:
        [B, N] float32.
    """
    row, column = coord[..., 1], coord[..., 2]
    found = torch.zeros(row.shape, device=coord.device)
    for stride in strides:
        on = (row >= 0) & (row % stride == 0) & (column % stride == 0)
        found = torch.where(on, torch.full_like(found, 1 - weight / stride**2).maximum(found), found)
    return found
