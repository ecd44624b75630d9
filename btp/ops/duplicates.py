"""Removal of near-duplicate tokens, a few at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from btp.core.keep import on_device

LISTED = 16  # likest tokens of each that are kept at hand


def without_duplicates(x: Tensor, order: Tensor, sizes: Sequence[int], k: Sequence[int], step: int) -> Tensor:
    """Drop the token that has the nearest likeness in the other half, `step` at a time, until k are left.

    In each round the tokens stand in a line, and every second one, from the first on, is compared with all between
    them. Those most like one of these go; those that stay are put in front of the others, the most alike first, and the
    next round halves the new line. Likeness is the cosine; of equals the one in front goes first. One table of likeness
    per row of the batch. A round looks at a quarter of it, O(N^3 / step) in all, without a host sync. On the CPU, where
    reading is free, each token has a list of those most like it, and looks into the table where none of them is in the
    other half; what is left is the same.

    Args:
        x: [B, N, D] features, any scale; finite also where they do not take part.
        order: [B, M] indices into N in the first round's order, those that take part in front.
        sizes: B numbers, how many take part.
        k: B numbers of tokens to leave, each at most the row's size.
        step: most tokens that go in a round, 1 or more.

    Returns:
        [B, N] bool, the tokens left.

    Source: Zhang et al. 2025, arXiv:2412.01818v2, section 3.3, and its released code, which has 8 a round.
    """
    B, N, _ = x.shape
    exact = torch.promote_types(x.dtype, torch.float32)
    unit = normalize(x.detach().to(exact), dim=-1)
    alike = unit @ unit.mT  # [B, N, N]
    if x.device.type != "cpu":
        return by_table(alike, order, sizes, k, step)
    found = torch.zeros(B, N, dtype=torch.bool)
    for row, (table, line, size, wanted) in enumerate(zip(alike, order, sizes, k, strict=True)):
        found[row, by_lists(table, line[:size], wanted, step)] = True
    return found


def by_table(alike: Tensor, order: Tensor, sizes: Sequence[int], k: Sequence[int], step: int) -> Tensor:
    """As `without_duplicates`, by a quarter of the table in every round.

    Args:
        alike: [B, N, N] cosines.
    """
    B, N, _ = alike.shape
    left, line = list(sizes), order
    batch = torch.arange(B, device=alike.device)[:, None]
    while any(n > wanted for n, wanted in zip(left, k, strict=True)):
        gone = [min(step, n - wanted, n // 2) if n > 1 else n - wanted for n, wanted in zip(left, k, strict=True)]
        real = torch.arange(line.shape[1], device=alike.device) < _column(left, alike.device)
        front, behind = line[:, ::2], line[:, 1::2]
        mine, other = real[:, ::2], real[:, 1::2]
        table = alike[batch[..., None], front[:, :, None], behind[:, None]]  # [B, F, R]
        if table.shape[2]:
            nearest = table.masked_fill(~other[:, None], -torch.inf).amax(2)
        else:
            nearest = torch.zeros_like(front, dtype=alike.dtype)
        ranked = nearest.masked_fill(~mine, -torch.inf).argsort(dim=1, descending=True, stable=True)
        rank = torch.arange(ranked.shape[1], device=alike.device)
        stays = (rank >= _column(gone, alike.device)) & (rank < mine.sum(1, keepdim=True))
        joined = torch.cat([front.gather(1, ranked), behind], dim=1)
        keeps = torch.cat([stays, other], dim=1)
        left = [n - less for n, less in zip(left, gone, strict=True)]
        line = joined.gather(1, (~keeps).long().argsort(dim=1, stable=True)[:, : max(left)])
    real = torch.arange(line.shape[1], device=alike.device) < _column(left, alike.device)
    found = torch.zeros(B, N + 1, dtype=torch.bool, device=alike.device)
    return found.scatter(1, line.masked_fill(~real, N), True)[:, :N]


def by_lists(alike: Tensor, line: Tensor, k: int, step: int) -> Tensor:
    """[k] the tokens that are left of one row's line, by each token's list of those most like it.

    Args:
        alike: [N, N] cosines.
        line: [M] indices into N.
    """
    lists = Lists(alike)
    while (n := len(line)) > k:
        front, behind = line[::2], line[1::2]
        gone = min(step, n - k, n // 2) if n > 1 else n - k
        nearest = lists.nearest(front, behind) if len(behind) else alike.new_zeros(len(front))
        ranked = nearest.argsort(descending=True, stable=True)
        line = torch.cat([front[ranked[gone:]], behind])
    return line


class Lists:
    """Nearest-neighbour lists of each token, most similar first; rebuilt once skipping entries has cost as much.

    Args:
        alike: [N, N].
    """

    def __init__(self, alike: Tensor) -> None:
        self._alike, self._spent = alike, 0
        self._value, self._index = alike.topk(min(LISTED, len(alike)), dim=1)

    def nearest(self, front: Tensor, behind: Tensor) -> Tensor:
        """[F] likeness of each token in front [F] to the most alike one of those behind [R], R > 0."""
        inside = torch.zeros(len(self._alike), dtype=torch.bool)
        inside[behind] = True
        found = self._value[front].masked_fill(~inside[self._index[front]], -torch.inf).amax(1)
        past = (found == -torch.inf).nonzero()[:, 0]
        if len(past):
            found[past] = self._alike[front[past][:, None], behind].amax(1)
            self._spent += len(past) * len(behind)
            if self._spent > (len(front) + len(behind)) ** 2:
                self._renew(torch.cat([front, behind]))
        return found

    def _renew(self, alive: Tensor) -> None:
        value, index = self._alike[alive[:, None], alive].topk(min(LISTED, len(alive)), dim=1)
        self._value = torch.full((len(self._alike), value.shape[1]), -torch.inf, dtype=value.dtype)
        self._index = torch.zeros(self._value.shape, dtype=torch.long)
        self._value[alive], self._index[alive], self._spent = value, alive[index], 0


def _column(numbers: Sequence[int], device: torch.device) -> Tensor:
    return on_device(tuple(numbers), device)[:, None]
