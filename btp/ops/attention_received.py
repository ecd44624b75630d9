"""Attention received by patches in one layer of a vision tower, and an importance map made of it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from btp.ops.row_blocks import HELD, row_blocks

COMBINES = ("mean", "sum")


def received_attention(queries: Tensor, keys: Tensor, real: Tensor | None = None) -> Tensor:
    """Attention that each patch receives from all patches: the column sums of the layer's attention, heads averaged.

    Attention is normalised over all keys, class tokens too, and then restricted to patches. Without class tokens the
    mean over a picture is 1.

    Args:
        queries: [P, H, N, d] of the patches, scaled.
        keys: [P, H, C + N, d], the C class tokens in front.
        real: [P, N] bool, patches that are not padding; None = all.

    Returns:
        [P, N] in float32 or better; 0 where padded.

    Raises:
        ValueError: there are fewer keys than queries.
    """
    return torch.cat([attention.sum(1) for attention, _ in _attention(queries, keys, real)])


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


def inflow_map(queries: Tensor, keys: Tensor, threshold: float, combine: str, real: Tensor | None = None) -> Tensor:
    """Importance map: attention rows of the patches that qualify, heads averaged, as a mean or a sum.

    Args:
        queries, keys, real: as `received_attention`.
        threshold: as `qualifying_rows`.
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
    for attention, there in _attention(queries, keys, real):
        rows = qualifying_rows(attention.sum(1), threshold, there)
        found = (rows.to(attention)[:, None] @ attention).squeeze(1)
        parts.append(found if combine == "sum" else found / rows.sum(1, keepdim=True).clamp(min=1))
    return torch.cat(parts)


def _attention(queries: Tensor, keys: Tensor, real: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Attention averaged over heads [p, N, N], 0 where padded, and what is real, of as many pictures at a time as HELD
    bytes hold, at least one."""
    front = keys.shape[2] - queries.shape[2]
    if front < 0:
        raise ValueError(
            f"The layer has {keys.shape[2]} keys for {queries.shape[2]} patches: tokens were withdrawn in the vision "
            "tower before it, so no map of the whole picture is left. Do not combine the two."
        )
    exact = torch.promote_types(queries.dtype, torch.float32)
    P, H, N, _ = queries.shape
    some = max(1, HELD // (exact.itemsize * N * N))
    for first in range(0, P, some):
        mine = slice(first, first + some)
        there = None if real is None else real[mine]
        columns = keys[mine].to(exact).mT
        hidden = None if there is None else torch.cat([there.new_zeros(len(there), front), ~there], dim=1)
        attention = columns.new_empty(columns.shape[0], N, N)
        for rows in row_blocks(N, len(columns) * H * keys.shape[2] * exact.itemsize, keys.device):
            logits = queries[mine, :, rows].to(exact) @ columns  # [p, H, R, C + N]
            if hidden is not None:
                logits.masked_fill_(hidden[:, None, None], -torch.inf)
            attention[:, rows] = logits.softmax(-1).mean(1)[..., front:]
        yield attention if there is None else attention.masked_fill_(~there[..., None], 0), there
