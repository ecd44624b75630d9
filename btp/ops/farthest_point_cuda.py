"""Farthest points on a device: all rows at once, all picks queued without waiting for the one before.

Where the similarities of all to all are held and Triton is at hand, one kernel makes all picks; otherwise each is 3 to
6 small ones.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from btp.core.keep import on_device

TABLE_TOKENS = 4096  # above it the N x N similarities of a row (64 MiB in float32) are never held at once
BLOCK = 512  # rows of similarities made at once where they are not kept
# Rows of the table that may be made for a pick that then costs less: with the kernel it saves six launches. Estimates.
QUEUED, WALKED = 8, 32


def queued(
    x: Tensor,
    seed: Tensor,
    counts: Sequence[int],
    valid: Tensor | None,
    sure: Sequence[int],
    power: float | None,
    ordered: bool,
) -> Tensor:
    """Farthest-point sampling without host syncs; arguments as `btp.ops.farthest_point.farthest_points`.

    Args:
        x: [B, N, D] of the precision to compare in.
        sure: B numbers, distinct seeds that each row has for certain.
        power: None for cosines, else p of the p-norm.
    """
    B, N, _ = x.shape
    taken = torch.zeros(B, N + 1, dtype=torch.bool, device=x.device)  # the last column is nobody's
    taken = taken.scatter(1, seed.masked_fill(seed < 0, N), True)
    chosen = taken[:, :N]
    steps = max((count - s for count, s in zip(counts, sure, strict=True)), default=0)
    index, widest = torch.arange(N, device=x.device), max(counts, default=0)
    picks = seed[:, :0]
    if steps > 0:
        picks = _grow(x, seed, chosen, valid, steps, power, start=min(sure) == 0)
        every = widest if widest == min(counts) else on_device(tuple(counts), x.device)
        missing = every - chosen.sum(1)  # [B]
        idle = torch.arange(steps, device=x.device) >= missing[:, None]
        picks = picks.masked_fill(idle, N)
    if ordered:
        return _in_turn(chosen, picks, widest)
    if steps > 0:
        taken = taken.scatter(1, picks, True)
    found = index.masked_fill(~taken[:, :N], N).sort(dim=1).values[:, :widest]
    return found if widest == min(counts, default=0) else found.masked_fill(found == N, -1)


def _in_turn(chosen: Tensor, picks: Tensor, widest: int) -> Tensor:
    """[B, widest] those chosen before, ascending, and the picks [B, steps] behind them, of which N is none."""
    N, device = chosen.shape[1], chosen.device
    rank = torch.arange(N, device=device).masked_fill(~chosen, 2 * N)  # a token that was not chosen ranks behind all
    rank = torch.cat([rank, rank[:, :1]], dim=1)
    turn = torch.arange(N, N + picks.shape[1], device=device)
    rank, found = rank.scatter(1, picks, turn.expand_as(picks))[:, :N].sort(dim=1, stable=True)
    return found.masked_fill(rank == 2 * N, -1)[:, :widest]


def _grow(
    x: Tensor, seed: Tensor, chosen: Tensor, valid: Tensor | None, steps: int, power: float | None, start: bool
) -> Tensor:
    """[B, steps] picks in their order; those of a row that already has enough are to be ignored."""
    N = x.shape[1]
    if power is None:  # tokens of length 0 repeat each other and nothing else: a direction of their own
        x = torch.cat([x, ~(x != 0).any(-1, keepdim=True)], dim=-1)
        x = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    walk = one_launch(x.device) if type(x) is Tensor else None  # a fake tensor has no memory for a kernel to read
    worth = QUEUED if walk is None else WALKED
    many = start or seed.shape[1] + worth * steps >= N  # a start compares all with all
    rows = _Table(x, power) if many and N <= TABLE_TOKENS else _Rows(x, power)
    nearest = rows.seeded(seed)  # [B, N], similarity to the nearest chosen token
    if start:
        alone = rows.isolation(valid)
        nearest = torch.where(chosen.any(1, keepdim=True), nearest, alone)
    blocked = chosen if valid is None else chosen | ~valid
    first = nearest = nearest.masked_fill(blocked, torch.inf)
    if start:  # the isolation of a first pick says nothing about what follows it
        nearest = torch.where(chosen.any(1, keepdim=True), first, -torch.inf).masked_fill(blocked, torch.inf)
    if walk is not None and isinstance(rows, _Table):
        return walk(rows.table, first, nearest, steps)
    picks = [first.argmin(1)]
    for _ in range(steps - 1):
        nearest = rows.update(nearest, picks[-1])
        picks.append(nearest.argmin(1))
    return torch.stack(picks, dim=1)


@functools.cache
def one_launch(device: torch.device) -> Callable[[Tensor, Tensor, Tensor, int], Tensor] | None:
    """`btp.ops.farthest_point_triton.walk`, tried on the device; None where it cannot run there.

    Warns:
        RuntimeWarning: Triton is installed, but builds nothing here, as without a C compiler.
    """
    if device.type != "cuda" or find_spec("triton") is None:
        return None
    try:
        from btp.ops.farthest_point_triton import walk

        alone = torch.zeros(1, 2, device=device)
        walk(torch.zeros(1, 2, 2, device=device), alone, alone, 1)
    except Exception as error:  # of Triton, of the compiler that it starts, or of the driver
        warnings.warn(
            f"Triton cannot build the kernel of farthest points on {device}: {error}. Each pick is launched by itself, "
            "which is slower. A C compiler on the PATH is what it lacks most often.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return walk


class _Rows:
    """Similarities made when they are asked for: N x D a pick.

    Args:
        x: [B, N, D], of unit length where `power` is None.
        power: None for cosines, else p of the p-norm whose negative distances stand for similarities.
    """

    def __init__(self, x: Tensor, power: float | None) -> None:
        self.x, self.power = x, power

    def compare(self, some: Tensor) -> Tensor:
        """[B, M, N] similarities of tokens [B, M, D] to all."""
        if self.power is None:
            return some @ self.x.mT
        # products would lose the distance of near copies, and with it who is picked
        return -torch.cdist(some, self.x, self.power, compute_mode="donot_use_mm_for_euclid_dist")

    def block(self, index: Tensor) -> Tensor:
        """[B, M, N] similarities of the tokens `index` [B, M] to all."""
        return self.compare(self.x.gather(1, index[..., None].expand(-1, -1, self.x.shape[2])))

    def update(self, nearest: Tensor, pick: Tensor) -> Tensor:
        """Take `pick` [B] into account; it is never picked again."""
        torch.maximum(nearest, self.block(pick[:, None]).squeeze(1), out=nearest)
        return nearest.scatter_(1, pick[:, None], torch.inf)

    def seeded(self, seed: Tensor) -> Tensor:
        """[B, N] similarity to the nearest seed, -inf without one."""
        if not seed.shape[1]:
            return self.x.new_full(self.x.shape[:2], -torch.inf)
        parts = []
        for index in seed.split(BLOCK, dim=1):
            block = self.block(index.clamp(min=0)).masked_fill_((index < 0)[..., None], -torch.inf)
            parts.append(block.amax(1))
        return functools.reduce(torch.maximum, parts)

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
        self.table = self.compare(x)
        self.table.diagonal(dim1=1, dim2=2).fill_(torch.inf)  # a picked token is never picked again
        self.flat = self.table.view(B * N, N)
        self.offset = torch.arange(B, device=x.device) * N

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
