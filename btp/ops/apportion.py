"""Shares a number of tokens among groups by weight, no group beyond what it has."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = 1e-4  # of a token, forgiven before the whole part is taken


def apportion(weight: Tensor, total: Tensor, room: Tensor) -> Tensor:
    """Each group's whole part of its share; what is left goes one by one, then wherever there is room.

    A group gets the whole part of total * weight / sum, at most its room. What is left over by rounding goes to the
    groups of highest weight that have room, one each; what full groups could not take goes to the others in the order
    of weight. Of equal weights the first group comes first. No host sync.

    Args:
        weight: [B, G], 0 or more; where a row has none at all, every group with room weighs the same.
        total: [B] tokens to share, at most the sum of the room.
        room: [B, G] integers, 0 or more.

    Returns:
        [B, G] int64 that sum to `total`.
    """
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32)).masked_fill(room == 0, 0)
    weight = torch.where(weight.sum(1, keepdim=True) > 0, weight, (room > 0).to(weight))
    share = weight / weight.sum(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
    given = torch.minimum((share * total[:, None] + ROUNDING).floor().long(), room)
    order = weight.argsort(dim=1, descending=True, stable=True)
    for most in (1, None):  # one each, then all that there is room for
        free = (room - given).gather(1, order)
        free = free if most is None else free.clamp(max=most)
        left = (total - given.sum(1))[:, None]
        more = torch.minimum((left - (free.cumsum(1) - free)).clamp(min=0), free)
        given = given.scatter_add(1, order, more)
    return given


def best_of_groups(scores: Tensor, group: Tensor, quota: Tensor, valid: Tensor) -> Tensor:
    """Mark the highest scores of each group, as many as its quota. Ties go to the lowest index. No host sync.

    Args:
        scores: [B, N].
        group: [B, N] which of G groups each token is in; any where not valid.
        quota: [B, G] tokens to mark, at most the group's.
        valid: [B, N] bool.

    Returns:
        [B, N] bool.
    """
    apart = group.masked_fill(~valid, quota.shape[1])
    falling = scores.argsort(dim=1, descending=True, stable=True)
    order = falling.gather(1, apart.gather(1, falling).argsort(dim=1, stable=True))  # group after group, best ahead
    sizes = quota.new_zeros(len(quota), quota.shape[1] + 1).scatter_add(1, apart, torch.ones_like(apart))
    first = (sizes.cumsum(1) - sizes).gather(1, apart.gather(1, order))
    turn = torch.arange(order.shape[1], device=order.device) - first
    most = torch.cat([quota, torch.zeros_like(quota[:, :1])], dim=1).gather(1, apart.gather(1, order))
    return torch.zeros_like(valid).scatter(1, order, turn < most)
