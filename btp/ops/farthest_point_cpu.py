"""Farthest points on the CPU: rows of the batch in turn, every pick read as soon as it is made.

Reading is free here and an operation on a few hundred tokens costs less than its launch, so the bookkeeping is done in
lists, and only similarities and their minimum are tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TABLE_TOKENS = 4096  # above it the N x N similarities of a row (64 MiB in float32) are never held at once
BLOCK = 512  # rows of similarities made at once where they are not kept


def read(
    x: Tensor, seed: Tensor, counts: Sequence[int], valid: Tensor | None, power: float | None, ordered: bool
) -> Tensor:
    """Farthest-point sampling, row by row; arguments as `btp.ops.farthest_point.farthest_points`.

    Args:
        x: [B, N, D] of the precision to compare in.
        power: None for cosines, else p of the p-norm.
    """
    if power is None:
        x = unit_length(x)
    lengths = (x.shape[1],) * len(counts) if valid is None else valid.sum(1).tolist()
    widest, found = max(counts, default=0), []
    for row, mine, count, length in zip(x, seed.tolist(), counts, lengths, strict=True):
        seeds = sorted({i for i in mine if i >= 0})
        chosen = seeds + _grow(row[:length], seeds, count - len(seeds), power)
        found.append((chosen if ordered else sorted(chosen)) + [-1] * (widest - len(chosen)))
    return torch.tensor(found, dtype=torch.long).view(len(counts), widest)


def unit_length(x: Tensor) -> Tensor:
    """[B, N, D or D + 1] tokens of length 1; where some have length 0, these get a direction of their own."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    if length.numel() and not length.min():
        x = torch.cat([x, (length == 0).to(x)], dim=-1)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / length


def _grow(x: Tensor, seeds: list[int], steps: int, power: float | None) -> list[int]:
    """The `steps` picks behind the seeds, in their order; x [N, D]."""
    if steps <= 0:
        return []
    # a start compares all with all; so many rows cost as much
    held = len(x) <= TABLE_TOKENS and (not seeds or len(seeds) + 8 * steps >= len(x))
    table = _table(x, power) if held else None
    picks: list[int] = []
    if not seeds:
        alone = _isolation(x, power) if table is None else table.fill_diagonal_(-torch.inf).amax(1)
        picks.append(int(alone.argmin()))
        nearest = torch.full_like(alone, -torch.inf)
    if table is not None:
        table.fill_diagonal_(torch.inf)  # a chosen token is never picked again
    if seeds:
        nearest = (table[seeds] if table is not None else _similar(x[seeds], x, power)).amax(0)
        if table is None:
            nearest[seeds] = torch.inf
    while True:
        if picks:
            last = picks[-1]
            row = table[last] if table is not None else _similar(x[last : last + 1], x, power)[0]
            torch.maximum(nearest, row, out=nearest)
            if table is None:
                nearest[last] = torch.inf
        if len(picks) == steps:
            return picks
        picks.append(int(nearest.argmin()))


def _similar(some: Tensor, x: Tensor, power: float | None) -> Tensor:
    """[M, N] similarities of `some` [M, D] to all."""
    if power is None:
        return some @ x.T
    # products would lose the distance of near copies, and with it who is picked
    return -torch.cdist(some, x, power, compute_mode="donot_use_mm_for_euclid_dist")


def _table(x: Tensor, power: float | None) -> Tensor:
    """[N, N] all similarities; of cosines the upper half is made and the lower one copied, which is cheaper."""
    N = len(x)
    if power is not None or N <= BLOCK:
        return _similar(x, x, power)
    table = x.new_empty(N, N)
    for first in range(0, N, BLOCK):
        last = min(first + BLOCK, N)
        torch.mm(x[first:last], x[first:].T, out=table[first:last, first:])
        table[last:, first:last] = table[first:last, last:].T
    return table


def _isolation(x: Tensor, power: float | None) -> Tensor:
    """[N] similarity of each token to its nearest other one, in blocks of rows."""
    nearest = []
    for first in range(0, len(x), BLOCK):
        block = _similar(x[first : first + BLOCK], x, power)
        block[:, first : first + BLOCK].fill_diagonal_(-torch.inf)
        nearest.append(block.amax(1))
    return torch.cat(nearest)
