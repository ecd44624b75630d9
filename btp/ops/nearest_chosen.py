"""Distances to the nearest token chosen before, as farthest-point sampling ranks by."""

from __future__ import annotations

import torch
from torch import Tensor

from btp.ops.farthest_point_cpu import unit_length


def distances_in_turn(x: Tensor, order: Tensor, valid: Tensor | None = None) -> Tensor:
    """Cosine distance of each token to the nearest one chosen before it; of those not chosen, to any chosen one.

    The first one chosen has none before it, and gets its distance to the nearest other token.

    Args:
        x: [B, N, D] features, any scale; padded tokens may hold any finite values.
        order: [B, K] indices in the order of choice, padded with -1 at the end.
        valid: [B, N] bool, real tokens in front; None = all.

    Returns:
        [B, N] float32 in [0, 2], in float64 where `x` is.
    """
    x = unit_length(x.detach() if x.dtype == torch.float64 else x.detach().float())
    B, N, _ = x.shape
    K, device = order.shape[1], x.device
    if not K:
        return torch.full((B, N), 2.0, device=device, dtype=x.dtype)
    chosen = x.gather(1, order.clamp(min=0)[..., None].expand(-1, -1, x.shape[2]))
    alike = (chosen @ x.mT).masked_fill((order < 0)[..., None], -torch.inf)  # [B, K, N]
    turn = torch.full((B, N + 1), K, device=device)  # of who was never chosen: behind all
    turn = turn.scatter(1, order.masked_fill(order < 0, N), torch.arange(K, device=device).expand(B, K))[:, :N]
    before = torch.arange(K, device=device)[:, None] < turn[:, None]  # [B, K, N]
    nearest = alike.masked_fill(~before, -torch.inf).amax(1)
    others = alike[:, 0] if valid is None else alike[:, 0].masked_fill(~valid, -torch.inf)
    others = others.scatter(1, order[:, :1].clamp(min=0), -torch.inf).amax(1, keepdim=True)
    return 1 - torch.where(turn == 0, others, nearest)
