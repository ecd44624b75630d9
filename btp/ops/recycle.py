"""Recycling: of the tokens that are pruned, each cell of the grid gives one back, the weighted mean of them all."""

from __future__ import annotations

import torch
from torch import Tensor

from btp.core.selection import MergePlan


def cell_numbers(region: Tensor, coord: Tensor, side: float, valid: Tensor) -> Tensor:
    """Number the cells that tokens lie in: squares of `side` in each region. No host sync.

    Args:
        region: [B, N] integers >= 0; cells never reach over two of them.
        coord: [B, N, 2] row and column; -1 for a token off the grid.
        side: Side of a cell, in tokens, not rounded.
        valid: [B, N] bool.

    Returns:
        [B, N] numbers in 0..N-1, different for different cells of a row; -1 off the grid and where padded.
    """
    far = 1 << 16  # more than any grid has rows
    at = (coord.double() / side).floor().long()
    key = (region * far + at[..., 0]) * far + at[..., 1]
    none = ~valid | (coord < 0).any(-1)
    key = key.masked_fill(none, torch.iinfo(torch.int64).max)
    ordered, order = key.sort(dim=1, stable=True)
    starts = torch.cat([torch.zeros_like(ordered[:, :1]), (ordered[:, 1:] != ordered[:, :-1]).long()], dim=1)
    number = torch.zeros_like(key).scatter(1, order, starts.cumsum(1))
    return number.masked_fill(none, -1)


def ranks(scores: Tensor, valid: Tensor) -> Tensor:
    """[B, N] place of each token by descending score, from 0; ties to the lowest index, padding behind all."""
    order = _order(scores, valid)
    return torch.zeros_like(order).scatter(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))


def direct_counts(rank: Tensor, cell: Tensor, valid: Tensor, wanted: Tensor, first: Tensor) -> Tensor:
    """How many tokens to keep directly, so that with one for each cell of the others `wanted` tokens are left.

    One token less that is kept directly is one more in a cell: if the cell was empty the total stays, else it falls.
    So every total from the number of cells on is reached by a run of counts, and the one nearest to `first` is taken.
    Where there are more cells than tokens wanted nothing is kept directly. No host sync.

    Args:
        rank: [B, N] as `ranks` returns it.
        cell: [B, N] as `cell_numbers` returns it.
        valid: [B, N] bool.
        wanted: [B] tokens to be left, at most those valid.
        first: [B] counts to stay near to.

    Returns:
        [B] int64.
    """
    left = torch.arange(rank.shape[1] + 1, device=rank.device) + given_back(rank, cell)  # [B, N + 1]
    possible = torch.arange(rank.shape[1] + 1, device=rank.device) <= valid.sum(1, keepdim=True)
    least = ((left < wanted[:, None]) & possible).sum(1)
    most = ((left <= wanted[:, None]) & possible).sum(1) - 1
    return torch.minimum(torch.maximum(first, least), most).clamp(min=0)


def given_back(rank: Tensor, cell: Tensor) -> Tensor:
    """[B, N + 1] how many cells hold at least one of the tokens that rank d or lower, for d from 0 to N."""
    B, N = rank.shape
    last = rank.new_full((B, N + 1), -1).scatter_reduce(1, _column(cell), rank, "amax")[:, :N]  # worst of each cell
    ends = rank.new_zeros(B, N + 2).scatter_add(1, last.masked_fill(last < 0, N + 1), torch.ones_like(last))
    ends[:, N + 1] = 0
    return ends.flip(1).cumsum(1).flip(1)[:, : N + 1]


def recycle(
    rank: Tensor, cell: Tensor, valid: Tensor, weight: Tensor, direct: Tensor, most: Tensor
) -> tuple[Tensor, MergePlan]:
    """Keep the best `direct` tokens, and of each cell the best of the others, into which these flow. No host sync.

    Args:
        rank, cell, valid: as `direct_counts`.
        weight: [B, N] of each token in its cell's mean; below 0 counts as 0, and in a cell without any weight all
            weigh the same, so that a mean never leaves the hull of its tokens.
        direct: [B] tokens to keep as they are.
        most: [B] tokens to keep at most; the cells whose best token ranks lowest are left out.

    Returns:
        [B, N] bool, the tokens that stay; and where each token goes: itself, its cell's best, or -1 where it is
        dropped without trace (off the grid, or in a cell that is left out).

    Source: Yang et al. 2025, arXiv:2508.05211, section 3.3, and its released code.
    """
    B, N = rank.shape
    index = torch.arange(N, device=rank.device).expand(B, N)
    low = (rank >= direct[:, None]) & (cell >= 0)
    into = _column(cell.masked_fill(~low, -1))
    best = rank.new_full((B, N + 1), N).scatter_reduce(1, into, rank, "amin").gather(1, into)  # [B, N]
    order = torch.zeros_like(rank).scatter(1, rank, index)
    stands = low & (rank == best)
    ranked = stands.gather(1, order).cumsum(1) <= (most - direct)[:, None]  # by rank, the best first
    stands = stands & ranked.gather(1, rank)
    stays = stands | (valid & (rank < direct[:, None]))
    target = torch.where(low, order.gather(1, best.clamp(max=N - 1)), index)
    target = target.masked_fill(~stays.gather(1, target) | ~valid, -1)
    weight = weight.clamp(min=0)
    total = weight.new_zeros(B, N + 1).scatter_add(1, into, weight).gather(1, into)
    return stays, MergePlan(target, torch.where(low & (total > 0), weight, 1.0))


def best_per_group(scores: Tensor, group: Tensor, valid: Tensor, wanted: Tensor) -> Tensor:
    """Keep the highest scores of each group, as many in all as wanted, in proportion to the groups' sizes.

    The groups' counts are the differences of their cumulative shares, rounded down, so that they add up exactly; of
    groups of one size the later ones get what is left over. No host sync.

    Args:
        scores: [B, N], ties to the lowest index.
        group: [B, N] integers in 0..N-1.
        valid: [B, N] bool.
        wanted: [B] tokens to be left, at most those valid.

    Returns:
        [B, N] bool.
    """
    B, N = scores.shape
    members = group.new_zeros(B, N + 1).scatter_add(1, _column(group.masked_fill(~valid, -1)), valid.long())[:, :N]
    share = members.cumsum(1) * wanted[:, None] // valid.sum(1, keepdim=True).clamp(min=1)
    counts = share.diff(dim=1, prepend=torch.zeros_like(share[:, :1]))  # [B, N], per group
    order = _order(scores, valid)
    grouped = group.masked_fill(~valid, N).gather(1, order).sort(dim=1, stable=True)
    order = order.gather(1, grouped.indices)  # group by group, the best first
    before = (members.cumsum(1) - members).gather(1, grouped.values.clamp(max=N - 1))
    within = torch.arange(N, device=scores.device) - before
    stays = (within < counts.gather(1, grouped.values.clamp(max=N - 1))) & (grouped.values < N)
    return torch.zeros_like(valid).scatter(1, order, stays)


def marked(stays: Tensor, widest: int) -> Tensor:
    """[B, widest] indices of the marked tokens, ascending, -1 padded at the end."""
    N = stays.shape[1]
    index = torch.arange(N, device=stays.device).masked_fill(~stays, N).sort(dim=1).values[:, :widest]
    return index.masked_fill(index == N, -1)


def _order(scores: Tensor, valid: Tensor) -> Tensor:
    """[B, N] indices by descending score, padding last."""
    lowest = scores.masked_fill(~valid, -torch.inf)
    by_score = lowest.argsort(dim=1, descending=True, stable=True)
    return by_score.gather(1, (~valid).gather(1, by_score).long().argsort(dim=1, stable=True))


def _column(cell: Tensor) -> Tensor:
    """Cells as columns to scatter to; what lies in none goes to one behind all."""
    return cell.masked_fill(cell < 0, cell.shape[1])
