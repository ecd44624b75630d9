"""Takes away the tokens that others stand for, a few at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from btp.core.keep import on_device


def without_duplicates(x: Tensor, order: Tensor, sizes: Sequence[int], k: Sequence[int], step: int) -> Tensor:
    """Drop the token that has the nearest likeness in the other half, `step` at a time, until k are left.

    In each round the tokens stand in a line, and every second one, from the first on, is compared with all between
    them. Those most like one of these go; those that stay are put in front of the others, the most alike first, and the
    next round halves the new line. Likeness is the cosine; of equals the one in front goes first. No host sync; one
    table of likeness per row of the batch.

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
    left, line = list(sizes), order
    batch = torch.arange(B, device=x.device)[:, None]
    while any(n > wanted for n, wanted in zip(left, k, strict=True)):
        gone = [min(step, n - wanted, n // 2) if n > 1 else n - wanted for n, wanted in zip(left, k, strict=True)]
        real = torch.arange(line.shape[1], device=x.device) < _column(left, x.device)
        front, behind = line[:, ::2], line[:, 1::2]
        mine, other = real[:, ::2], real[:, 1::2]
        table = alike[batch[..., None], front[:, :, None], behind[:, None]]  # [B, F, R]
        if table.shape[2]:
            nearest = table.masked_fill(~other[:, None], -torch.inf).amax(2)
        else:
            nearest = torch.zeros_like(front, dtype=exact)
        ranked = nearest.masked_fill(~mine, -torch.inf).argsort(dim=1, descending=True, stable=True)
        rank = torch.arange(ranked.shape[1], device=x.device)
        stays = (rank >= _column(gone, x.device)) & (rank < mine.sum(1, keepdim=True))
        joined = torch.cat([front.gather(1, ranked), behind], dim=1)
        keeps = torch.cat([stays, other], dim=1)
        left = [n - less for n, less in zip(left, gone, strict=True)]
        line = joined.gather(1, (~keeps).long().argsort(dim=1, stable=True)[:, : max(left)])
    real = torch.arange(line.shape[1], device=x.device) < _column(left, x.device)
    found = torch.zeros(B, N + 1, dtype=torch.bool, device=x.device)
    return found.scatter(1, line.masked_fill(~real, N), True)[:, :N]


def _column(numbers: Sequence[int], device: torch.device) -> Tensor:
    return on_device(tuple(numbers), device)[:, None]
