"""Farthest-point sampling: a set of tokens in which each lies as far as possible from all others.

The state is one vector, the similarity of every token to its nearest chosen one. A pick compares it with one
more row and takes the least, so that k picks cost O(k N) beside the similarities. These come from one matrix
product, or row by row where few rows are asked for. All picks are queued without waiting for the device; on a
GPU they are 3 to 5 small kernels each, and one kernel for the whole loop would be faster still.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

DISTANCES = ("cosine", "l1", "l2")
TABLE_TOKENS = 4096  # above it the N x N similarities of a row (64 MiB in float32) are never held at once
BLOCK = 512  # rows of similarities made at once where they are not kept


def farthest_points(
    x: Tensor,
    seed: Tensor,
    k: int | Sequence[int],
    valid: Tensor | None = None,
    at_least: Sequence[int] | None = None,
    distance: str = "cosine",
    ordered: bool = False,
) -> Tensor:
    """Grow `seed` to `k` tokens, each as far as possible from all chosen so far.

    Distances are made in float32, or in the precision of `x` where that is higher. Ties go to the lowest index.
    No token is taken twice, also where all that is left repeats what was taken; a token of length 0 repeats others
    of its kind and is at cosine distance 1 from the rest. No host sync, unless `x` is on the CPU, where reading is
    free.

    Args:
        x: [B, N, D] features, any scale; padded tokens may hold any finite values.
        seed: [B, M] indices already chosen, in any order; -1 and repeats count for nothing, and a row may not
            have more than k others. A row without any starts from the token whose nearest other one is
            farthest.
        k: tokens to return per row, one number or B of them, each in [0, valid tokens of the row].
        valid: [B, N] bool, real tokens in front; None = all.
        at_least: B numbers, distinct seeds that each row has for certain; saves picks that would be idle.
        distance: cosine (1 - cosine) | l1 | l2.
        ordered: seeds first, ascending, and the others behind them in the order of picking.

    Returns:
        [B, max(k)] int64, ascending unless `ordered`, shorter rows padded with -1 at the end.

    Raises:
        ValueError: k does not match the rows, or is not in [0, N], or the distance is unknown.

    Source: Alvar et al. 2025, arXiv:2503.02175, algorithm 1 (their code takes the minimum over all chosen
    rows anew at every pick); Li et al. 2025, arXiv:2505.22038, section 4.2, for the seeds.
    """
    B, N, _ = x.shape
    counts = (k,) * B if isinstance(k, int) else tuple(k)
    if len(counts) != B:
        raise ValueError(f"farthest_points got {len(counts)} counts for {B} rows. Pass one count per row.")
    if min(counts, default=0) < 0 or max(counts, default=0) > N:
        raise ValueError(f"farthest_points was asked for {counts} of {N} tokens. Counts must lie in 0..{N}.")
    if distance not in DISTANCES:
        raise ValueError(f"distance is {distance!r}. Choose from: {', '.join(DISTANCES)}.")
    wanted = torch.tensor(counts, device=x.device)
    chosen = torch.zeros(B, N + 1, dtype=torch.bool, device=x.device)
    chosen = chosen.scatter(1, torch.where(seed >= 0, seed, N), True)[:, :N]
    missing = wanted - chosen.sum(1)  # [B]
    sure = tuple(at_least) if at_least is not None else (0,) * B
    if _reads_freely(x):
        sure = tuple(chosen.sum(1).tolist())
    steps = max((count - s for count, s in zip(counts, sure, strict=True)), default=0)
    index = torch.arange(N, device=x.device)
    rank = torch.where(chosen, index, 2 * N)  # [B, N]; a token that was not chosen ranks behind all
    if steps > 0:
        picks = _grow(x, seed, chosen, valid, steps, distance, start=min(sure) == 0)
        step = torch.arange(steps, device=x.device)
        idle = step >= missing[:, None]
        rank = torch.cat([rank, rank[:, :1]], dim=1)
        rank = rank.scatter(1, picks.masked_fill(idle, N), (N + step).expand_as(picks))[:, :N]
    widest = max(counts, default=0)
    if not ordered:
        found = torch.where(rank < 2 * N, index, N).sort(dim=1).values[:, :widest]
        return found.masked_fill(found == N, -1)
    rank, found = rank.sort(dim=1, stable=True)
    return found.masked_fill(rank == 2 * N, -1)[:, :widest]


def _reads_freely(x: Tensor) -> bool:
    """True where looking at a value does not make the host wait for a device."""
    return x.device.type == "cpu"


def _grow(
    x: Tensor, seed: Tensor, chosen: Tensor, valid: Tensor | None, steps: int, distance: str, start: bool
) -> Tensor:
    """[B, steps] picks in their order; those of a row that already has enough are to be ignored."""
    N = x.shape[1]
    x = x.detach()
    x = x if x.dtype == torch.float64 else x.float()
    power = None if distance == "cosine" else float(distance[1])
    if power is None:
        x = normalize(x, dim=-1)
    many = start or seed.shape[1] + 8 * steps >= N  # a start compares all with all; so many rows cost as much
    rows = _Table(x, power) if many and N <= TABLE_TOKENS else _Rows(x, power)
    nearest = rows.seeded(seed)  # [B, N], similarity to the nearest chosen token
    if start:
        alone = rows.isolation(valid)
        nearest = torch.where(chosen.any(1, keepdim=True), nearest, alone)
    blocked = chosen if valid is None else chosen | ~valid
    nearest = nearest.masked_fill(blocked, torch.inf)
    pick = nearest.argmin(1)
    if start:  # the isolation of a first pick says nothing about what follows it
        nearest = torch.where(chosen.any(1, keepdim=True), nearest, -torch.inf).masked_fill(blocked, torch.inf)
    return torch.cat([pick[:, None], rows.follow(nearest, pick, steps - 1)], dim=1)


class _Rows:
    """Similarities made when they are asked for: N x D a pick.

    Args:
        x: [B, N, D], of unit length where `power` is None.
        power: None for cosines, else p of the p-norm whose negative distances stand for similarities.
    """

    def __init__(self, x: Tensor, power: float | None) -> None:
        self.x, self.power = x, power
        empty = ~(x != 0).any(-1) if power is None else None  # [B, N], tokens that repeat each other and nothing else
        self.empty = None if empty is None or (_reads_freely(x) and not empty.any()) else empty

    def compare(self, some: Tensor, empty: Tensor | None) -> Tensor:
        """[B, M, N] similarities of tokens [B, M, D] to all; `empty` [B, M] are those of length 0."""
        if self.power is not None:
            # products would lose the distance of near copies, and with it who is picked
            return -torch.cdist(some, self.x, self.power, compute_mode="donot_use_mm_for_euclid_dist")
        found = some @ self.x.mT
        return found if empty is None else found.masked_fill_(empty[..., None] & self.empty[:, None], 1.0)

    def block(self, index: Tensor) -> Tensor:
        """[B, M, N] similarities of the tokens `index` [B, M] to all."""
        some = self.x.gather(1, index[..., None].expand(-1, -1, self.x.shape[2]))
        return self.compare(some, None if self.empty is None else self.empty.gather(1, index))

    def update(self, nearest: Tensor, pick: Tensor) -> Tensor:
        """Take `pick` [B] into account; it is never picked again."""
        torch.maximum(nearest, self.block(pick[:, None]).squeeze(1), out=nearest)
        return nearest.scatter_(1, pick[:, None], torch.inf)

    def follow(self, nearest: Tensor, pick: Tensor, steps: int) -> Tensor:
        """[B, steps] the picks behind `pick`; overwrites `nearest`."""
        picks = [pick]
        for _ in range(steps):
            nearest = self.update(nearest, picks[-1])
            picks.append(nearest.argmin(1))
        return torch.stack(picks, dim=1)[:, 1:]

    def seeded(self, seed: Tensor) -> Tensor:
        """[B, N] similarity to the nearest seed, -inf without one."""
        nearest = self.x.new_full(self.x.shape[:2], -torch.inf)
        for index in seed.split(BLOCK, dim=1):
            block = self.block(index.clamp(min=0)).masked_fill_((index < 0)[..., None], -torch.inf)
            nearest = torch.maximum(nearest, block.amax(1)) if index.shape[1] else nearest
        return nearest

    def isolation(self, valid: Tensor | None) -> Tensor:
        """[B, N] similarity of each token to its nearest other one, in blocks of rows."""
        everyone = torch.arange(self.x.shape[1], device=self.x.device)
        nearest = []
        for index in everyone.split(BLOCK):
            block = self.block(index.expand(self.x.shape[0], -1))
            block = block.masked_fill(index[:, None] == everyone, -torch.inf)
            if valid is not None:
                block = block.masked_fill(~valid[:, None], -torch.inf)
            nearest.append(block.amax(2))
        return torch.cat(nearest, dim=1)


class _Table(_Rows):
    """All similarities at once: one matrix product, then one row of it a pick."""

    def __init__(self, x: Tensor, power: float | None) -> None:
        super().__init__(x, power)
        B, N, _ = x.shape
        self.table = self._products() if power is None and _reads_freely(x) else self.compare(x, self.empty)
        self.table.diagonal(dim1=1, dim2=2).fill_(torch.inf)  # a picked token is never picked again
        self.flat = self.table.view(B * N, N)
        self.offset = torch.arange(B, device=x.device) * N

    def _products(self) -> Tensor:
        """All cosines, the upper half made and the lower one copied: a CPU is slow at products, not at copies."""
        N = self.x.shape[1]
        table = self.x.new_empty(len(self.x), N, N)
        for first in range(0, N, BLOCK):
            last = min(first + BLOCK, N)
            torch.bmm(self.x[:, first:last], self.x[:, first:].mT, out=table[:, first:last, first:])
            table[:, last:, first:last] = table[:, first:last, last:].mT
        if self.empty is not None:
            table.masked_fill_(self.empty[..., None] & self.empty[:, None], 1.0)
        return table

    def block(self, index: Tensor) -> Tensor:
        return self.flat[index + self.offset[:, None]]

    def isolation(self, valid: Tensor | None) -> Tensor:
        diagonal = self.table.diagonal(dim1=1, dim2=2)
        diagonal.fill_(-torch.inf)
        if valid is not None:
            self.table.masked_fill_(~valid[:, None], -torch.inf)
        nearest = self.table.amax(2)
        diagonal.fill_(torch.inf)
        return nearest

    def update(self, nearest: Tensor, pick: Tensor) -> Tensor:
        return torch.maximum(nearest, self.flat[pick + self.offset], out=nearest)

    def follow(self, nearest: Tensor, pick: Tensor, steps: int) -> Tensor:
        if not _reads_freely(pick):
            return super().follow(nearest, pick, steps)
        picks = []
        for mine, rows, last in zip(nearest.unbind(), self.table.unbind(), pick.tolist(), strict=True):
            for _ in range(steps):  # rows as views instead of copies take a third of the time
                last = int(torch.maximum(mine, rows[last], out=mine).argmin())
                picks.append(last)
        return torch.tensor(picks, dtype=torch.long).view(len(pick), steps)
