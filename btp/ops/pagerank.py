"""PageRank on self-attention: where a random walk along attention stands after a few steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from btp.ops.row_blocks import CACHE, HELD

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
    softmax(logits / tau). It is followed in float64 and squared in logs: a small tau makes shares of 1e-100 common,
    which float32 holds as 0 and ranks as ties. Shares below 1e-308 in every head do count as unreached.

    The lower half of a few heads' probabilities is held at a time, HELD bytes at most. Where one head needs more, its
    blocks of rows are made anew in every step.

    Args:
        queries: [B, Hq, S, d], scaled, so that queries @ keys^T are the logits; finite also where padded.
        keys: [B, Hkv, S, d], where Hkv divides Hq.
        tau: temperature, above 0.
        iterations: steps.
        damping: share of the walk that starts anew in every step, in [0, 1).
        rows: [B, S] bool, rows that are real: the walk starts there; None = all.
        columns: [B, S] bool, rows that can be gone to; each real row needs one at or before it. None = `rows`.
            The official code leaves pruned tokens in the sequence: it starts from them too, but never goes there.
        block: rows made at once; changes nothing but memory.

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
    queries = queries.to(exact).div(tau).reshape(B * H, S, d)
    keys = keys.to(exact).reshape(-1, S, d)
    barred = torch.zeros(B, S, dtype=exact, device=rows.device).masked_fill(~columns, torch.finfo(exact).min)
    leads = columns.cumsum(1) > 0  # [B, S], rows that can go anywhere
    start = rows.double() / rows.sum(1, keepdim=True).clamp(min=1)
    blocks = [(first, min(first + block, S)) for first in range(0, S, block)]
    size = 8 * sum((last - first) * last for first, last in blocks)  # bytes of one head
    held = size <= HELD
    limit = min(HELD, CACHE) if queries.device.type == "cpu" else HELD
    heads = max(1, limit // (size if held else 8 * block * S))
    found = []
    for first in range(0, B * H, heads):
        last = min(first + heads, B * H)
        who = torch.arange(first, last, device=rows.device)
        mine = who // H  # which row of the batch each head is of
        some = keys[first:last] if groups == 1 else keys[who // groups]
        steps = _Steps(queries[first:last], some, barred[mine], blocks, held)
        begin, lead = start[mine][:, None], leads[mine][:, None]  # [heads, 1, S]
        here = begin
        for _ in range(iterations):
            here = steps.take(here * lead)
            if damping:
                here = (1 - damping) * here + damping * begin
        found.append(here[:, 0])
    share = torch.cat(found).view(B, H, S).log()
    return ((share.mul(2).logsumexp(1) - math.log(H)) / 2).to(exact)


class _Steps:
    """Probabilities of a step from each row to those up to it, for some heads.

    Args:
        queries: [heads, S, d].
        keys: [heads, S, d].
        barred: [heads, S] added to the logits.
        blocks: first row and end of each block.
        held: keep the blocks instead of making them for every step.
    """

    def __init__(
        self, queries: Tensor, keys: Tensor, barred: Tensor, blocks: list[tuple[int, int]], held: bool
    ) -> None:
        self.queries, self.keys, self.barred, self.blocks = queries, keys.mT, barred[:, None], blocks
        self.held = [self.block(first, last) for first, last in blocks] if held else None

    def block(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """[heads, last - first, last] float64 parts of what leaves these rows, and [heads, 1, rows] their sums."""
        bias = self.barred[..., :last].expand(-1, last - first, -1)
        logits = torch.baddbmm(bias, self.queries[:, first:last], self.keys[..., :last])
        later = torch.ones(last - first, last - first, dtype=torch.bool, device=logits.device).triu_(1)
        logits[..., first:].masked_fill_(later, torch.finfo(logits.dtype).min)
        # float32 and its fast softmax reach exp(-87); the 8th power in float64, as wide as that type
        parts = logits.mul_(0.125).softmax(-1).double()
        for _ in range(3):
            parts.square_()
        return parts, parts.sum(-1)[:, None]

    def take(self, here: Tensor) -> Tensor:
        """Where a walk stands that stood at `here` [heads, 1, S] one step before."""
        there = torch.zeros_like(here)
        for i, (first, last) in enumerate(self.blocks):
            parts, total = self.block(first, last) if self.held is None else self.held[i]
            there[..., :last] += (here[..., first:last] / total) @ parts
        return there
