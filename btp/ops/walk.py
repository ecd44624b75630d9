"""PageRank on self-attention: where a random walk along attention stands after a few steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BLOCK = 128  # rows of attention made at once


def walk_scores(
    queries: Tensor,
    keys: Tensor,
    *,
    tau: float,
    iterations: int,
    damping: float,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
    block: int = BLOCK,
) -> Tensor:
    """Importance of every row of a causal layer: the root of the mean over heads of its squared share of the walk.

    The walk starts evenly from all real rows; each step goes from a row to one at or before it, with the probability
    softmax(logits / tau). It is followed in logs: a small tau makes shares of 1e-100 common, which float32 holds as 0
    and ranks as ties. Attention is made anew for `block` rows at a time, and never held whole.

    Args:
        queries: [B, Hq, S, d], scaled, so that queries @ keys^T are the logits; finite also where padded.
        keys: [B, Hkv, S, d], where Hkv divides Hq.
        tau: temperature, above 0.
        iterations: steps.
        damping: share of the walk that starts anew in every step, in [0, 1).
        rows: [B, S] bool, rows that are real: the walk starts there; None = all.
        columns: [B, S] bool, rows that can be gone to; each real row needs one at or before it. None = `rows`.
            The official code leaves pruned tokens in the sequence: it starts from them too, but never goes there.
        block: rows made at once; changes nothing but memory, [B, Hq, block, S].

    Returns:
        [B, S] log of the score, float32 or better; -inf for what cannot be reached.

    Raises:
        ValueError: the heads of the keys do not divide those of the queries.

    Source: Zhong et al. 2025, arXiv:2412.03248, section 3, and its released code, which computes it in float32.
    """
    B, H, S, d = queries.shape
    groups, rest = divmod(H, keys.shape[1])
    if rest:
        raise ValueError(f"walk_scores got {H} query heads and {keys.shape[1]} key heads, which do not divide them.")
    exact = torch.promote_types(queries.dtype, torch.float32)
    if rows is None:
        rows = torch.ones(B, S, dtype=torch.bool, device=queries.device)
    columns = rows if columns is None else columns
    queries = queries.to(exact).div(tau).reshape(B, H // groups, groups, S, d)
    keys = keys.to(exact)
    start = (rows.to(exact) / rows.sum(1, keepdim=True).clamp(min=1)).log()[:, None]  # [B, 1, S]
    here = start.expand(B, H, S)
    for _ in range(iterations):
        there = torch.full_like(here, -torch.inf)
        for first in range(0, S, block):
            last = min(first + block, S)
            steps = _log_steps(queries, keys, columns, first, last)  # [B, Hq, rows, last]
            came = (here[:, :, first:last, None] + steps).logsumexp(2)
            there[..., :last] = torch.logaddexp(there[..., :last], came)
        here = there
        if damping:
            here = torch.logaddexp(here + math.log1p(-damping), start + math.log(damping))
    return (here.mul(2).logsumexp(1) - math.log(H)) / 2


def _log_steps(queries: Tensor, keys: Tensor, columns: Tensor, first: int, last: int) -> Tensor:
    """[B, Hq, last - first, last] log probability of a step from these rows to each one up to them."""
    B, heads, groups, _, d = queries.shape
    some = queries[:, :, :, first:last].reshape(B, heads, -1, d)  # [B, Hkv, groups * rows, d]
    logits = (some @ keys[:, :, :last].mT).view(B, heads * groups, last - first, last)
    number = torch.arange(last, device=queries.device)
    barred = ~(columns[:, None, :last] & (number <= number[first:, None]))[:, None]  # [B, 1, rows, last]
    logits = logits.masked_fill(barred, torch.finfo(logits.dtype).min)
    return logits.log_softmax(-1).masked_fill(barred, -torch.inf)
