"""Attention received by patches in one layer of a vision tower, and an importance map made of it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

COMBINES = ("mean", "sum")
BLOCK = 256  # query rows whose attention is held at once


def received_attention(queries: Tensor, keys: Tensor, real: Tensor | None = None) -> Tensor:
    """Attention that each patch receives from all patches: the column sums of the layer's attention, heads averaged.

    Attention is normalised over all keys, class tokens too, and then restricted to patches. Without class tokens the
    mean over a picture is 1. Worked out block by block: nothing of size N x N is ever held.

    Args:
        queries: [P, H, N, d] of the patches, scaled.
        keys: [P, H, C + N, d], the C class tokens in front.
        real: [P, N] bool, patches that are not padding; None = all.

    Returns:
        [P, N] in float32 or better; 0 where padded.

    Raises:
        ValueError: there are fewer keys than queries.
    """
    parts = [block.sum(1) for _, block in _blocks(queries, keys, real)]
    return torch.stack(parts).sum(0)


def qualifying_rows(received: Tensor, threshold: float, real: Tensor | None = None) -> Tensor:
    """Mark the patches that receive more than `threshold` times the mean; where none does, the one that receives most.

    Args:
        received: [P, N] as `received_attention` returns it.
        threshold: times the mean, >= 0.
        real: [P, N] bool; None = all.

    Returns:
        [P, N] bool, at least one in each picture. Of equals the first is the one that receives most.

    Source: Yang et al. 2025, arXiv:2508.05211, section 3.2. In the released code a picture without such a patch has a
    map of NaN.
    """
    real = torch.ones_like(received, dtype=torch.bool) if real is None else real
    mean = received.masked_fill(~real, 0).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)
    above = (received > threshold * mean) & real
    most = received.masked_fill(~real, -torch.inf).argmax(1, keepdim=True)
    alone = torch.zeros_like(above).scatter(1, most, True)
    return torch.where(above.any(1, keepdim=True), above, alone)


def inflow_map(queries: Tensor, keys: Tensor, rows: Tensor, combine: str, real: Tensor | None = None) -> Tensor:
    """Importance map: attention rows of some patches, heads averaged, as a mean or a sum.

    Args:
        queries, keys, real: as `received_attention`.
        rows: [P, N] bool, whose rows count.
        combine: mean (the released code) | sum (the paper's equation 4).

    Returns:
        [P, N] in float32 or better; 0 where padded.

    Raises:
        ValueError: combine is unknown, or there are fewer keys than queries.

    Source: Yang et al. 2025, arXiv:2508.05211, section 3.2.
    """
    if combine not in COMBINES:
        raise ValueError(f"pruner.method.rows is {combine!r}. Choose from: {', '.join(COMBINES)}.")
    parts = []
    for first, block in _blocks(queries, keys, real):
        mine = rows[:, first : first + block.shape[1]]
        parts.append(block.masked_fill(~mine[..., None], 0).sum(1))
    found = torch.stack(parts).sum(0)
    return found if combine == "sum" else found / rows.sum(1, keepdim=True).clamp(min=1)


def _blocks(queries: Tensor, keys: Tensor, real: Tensor | None) -> Iterator[tuple[int, Tensor]]:
    """First row, and attention of a block of rows averaged over heads [P, R, N]; 0 where padded."""
    front = keys.shape[2] - queries.shape[2]
    if front < 0:
        raise ValueError(
            f"The layer has {keys.shape[2]} keys for {queries.shape[2]} patches: tokens were withdrawn in the vision "
            "tower before it, so no map of the whole picture is left. Do not combine the two."
        )
    exact = torch.promote_types(queries.dtype, torch.float32)
    keys = keys.to(exact)
    hidden = None if real is None else torch.cat([real.new_zeros(len(real), front), ~real], dim=1)
    for first in range(0, queries.shape[2], BLOCK):
        logits = queries[:, :, first : first + BLOCK].to(exact) @ keys.mT  # [P, H, R, C + N]
        if hidden is not None:
            logits = logits.masked_fill(hidden[:, None, None], -torch.inf)
        block = logits.softmax(-1).mean(1)[..., front:]
        if real is not None:
            mine = real[:, first : first + block.shape[1]]
            block = block.masked_fill(~mine[..., None], 0)
        yield first, block
