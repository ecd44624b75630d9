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
NEAR_TURN = 512  # tokens without a table that are kept up to date at every pick


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
    if len(x) > TABLE_TOKENS:
        return _without_table(x, seeds, steps, power)
    # a start compares all with all; so many rows cost as much
    table = _table(x, power) if not seeds or len(seeds) + 8 * steps >= len(x) else None
    picks: list[int] = []
    if table is None:
        nearest = _seeded(x, seeds, power)
    else:
        if not seeds:
            picks.append(int(table.fill_diagonal_(-torch.inf).amax(1).argmin()))
        table.fill_diagonal_(torch.inf)  # a chosen token is never picked again
        nearest = table[seeds or picks].amax(0)
    while len(picks) < steps:
        last = int(nearest.argmin())
        picks.append(last)
        torch.maximum(nearest, _similar(x[last : last + 1], x, power)[0] if table is None else table[last], out=nearest)
        if table is None:
            nearest[last] = torch.inf
    return picks


def _without_table(x: Tensor, seeds: list[int], steps: int, power: float | None) -> list[int]:
    """The same picks in memory linear in N.

    What a pick does to a token can only bring it nearer to the chosen ones, so an old similarity is the least that it
    can be. Only the tokens next in turn are kept up to date; a pick among them is certain while it is below all others'
    old similarities, which are then brought up to date by one product for all picks since.
    """
    picks = [] if seeds else [int(_isolation(x, power).argmin())]
    nearest = _seeded(x, seeds or picks, power)
    while len(picks) < steps:
        near, turn = nearest.topk(min(NEAR_TURN, len(x)), largest=False)
        bound = near[-1]
        turn = turn.sort().values  # ties go to the lowest index
        near, some, at = nearest[turn], x[turn], int(nearest.argmin())
        since = []
        while True:
            since.append(at)
            if len(picks) + len(since) == steps or len(since) == BLOCK:
                break
            torch.maximum(near, _similar(x[at : at + 1], some, power)[0], out=near)
            near[turn == at] = torch.inf
            first = near.argmin()
            if near[first] >= bound:
                break
            at = int(turn[first])
        picks += since
        if len(picks) < steps:
            torch.maximum(nearest, _seeded(x, since, power), out=nearest)
    return picks


def _seeded(x: Tensor, chosen: list[int], power: float | None) -> Tensor:
    """[N] similarity of each token to the nearest of some, which are never picked again: inf."""
    nearest = _similar(x[chosen], x, power).amax(0)
    nearest[chosen] = torch.inf
    return nearest


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
    """[N] similarity of each token to its nearest other one, in blocks of rows, each pair once."""
    nearest = x.new_full((len(x),), -torch.inf)
    for first in range(0, len(x), BLOCK):
        last = min(first + BLOCK, len(x))
        block = _similar(x[first:last], x[first:], power)
        block.fill_diagonal_(-torch.inf)
        nearest[first:] = torch.maximum(nearest[first:], _joined(block))
    return nearest


def _joined(block: Tensor) -> Tensor:
    """[M] of the similarities of its first tokens to all M: the highest of each, as one of the first or of all."""
    highest = block.amax(0)
    highest[: len(block)] = block.amax(1)
    return highest
