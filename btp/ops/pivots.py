"""Pivot tokens by key norm, and the tokens least similar to them (DART)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize


def longest_keys(keys: Tensor, valid: Tensor, most: int) -> Tensor:
    """Tokens whose keys have the largest L1 norm over heads and channels.

    Ties go to the lowest index. No host sync.

    Args:
        keys: [B, H, N, d]; grouped heads may be repeated or not.
        valid: [B, N] bool, tokens that count.
        most: Most pivots of a row.

    Returns:
        [B, min(most, N)] indices, longest first, -1 where a row has fewer.

    Source: Wen et al. 2025, arXiv:2502.11494, table 8, where other rules do as well.
    """
    norm = torch.linalg.vector_norm(keys.to(_exact(keys)), ord=1, dim=(1, 3)).masked_fill(~valid, -1.0)
    order = norm.argsort(dim=1, descending=True, stable=True)[:, :most]
    return order.masked_fill(~valid.gather(1, order), -1)


def least_alike(x: Tensor, free: Tensor, pivots: Tensor, quota: Tensor) -> Tensor:
    """Each pivot in turn takes the free tokens whose cosine to it is smallest.

    What one has taken is gone for the next, so that the order of the pivots matters. Cosines are made in float32 or
    better; ties go to the lowest index. No host sync.

    Args:
        x: [B, N, D] tokens, any scale; finite also where padded.
        free: [B, N] bool, tokens that may be taken.
        pivots: [B, P, D], in the order of their turns.
        quota: [B, P] tokens that each may take; it takes fewer where fewer are left.

    Returns:
        [B, N] bool, taken by any.

    Source: Wen et al. 2025, arXiv:2502.11494. The paper has a threshold in place of the quota.
    """
    exact = _exact(x)
    alike = normalize(pivots.to(exact), dim=-1) @ normalize(x.to(exact), dim=-1).mT  # [B, P, N]
    first = torch.arange(x.shape[1], device=x.device) < quota[..., None]  # [B, P, N]
    gone = ~free
    for turn, mine in zip(alike.unbind(1), first.unbind(1), strict=True):
        order = turn.masked_fill(gone, torch.inf).argsort(dim=1, stable=True)
        gone = gone.scatter(1, order, gone.gather(1, order) | mine)
    return free & gone


def even_quota(rest: Tensor, real: Tensor) -> Tensor:
    """Share `rest` tokens among the real pivots; what is left over goes to the first ones.

    Args:
        rest: [B] tokens to share.
        real: [B, P] bool, pivots that take part, in the order of their turns.

    Returns:
        [B, P] numbers that sum to `rest` wherever a row has a pivot.
    """
    number = real.sum(1, keepdim=True).clamp(min=1)
    share, over = rest[:, None] // number, rest[:, None] % number
    return (share + (real.cumsum(1) <= over)) * real


def set_order(ids: Sequence[int]) -> list[int]:
    """Places of distinct integers in the order in which CPython walks through the set of them.

    The released DART keeps its pivots in a set, filled in the order of `ids`, and visits them as the set's hash table
    has them: by the remainder to its size, with collisions moved on.
    """
    place = {number: i for i, number in enumerate(ids)}
    return [place[number] for number in set(ids)]


def _exact(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
