"""Token transitions: how much a block of a layer changes a token, against what it does to all others."""

from __future__ import annotations

import torch
from torch import Tensor

DIRECTIONS = ("signed", "orthogonal")


def transition_weights(change: Tensor, everyone: Tensor, everyone_valid: Tensor, direction: str) -> Tensor:
    """Norm ratio of what a block hands out and takes in, times the softmax of the turn it makes.

    The softmax runs over every row of the layer as it ran, text too, so that layers with fewer rows weigh more.

    Args:
        change: [2, B, N] norm ratio |out| / |in| and cosine of the two, of the tokens asked about.
        everyone: [2, B, S] the same of all rows of the layer.
        everyone_valid: [B, S] bool, rows that are no padding.
        direction: signed (1 - cosine: a reversed token counts most) | orthogonal (1 - |cosine|).

    Returns:
        [B, N] float32 or better, >= 0.

    Raises:
        ValueError: direction is unknown.

    Source: Li et al. 2025, arXiv:2507.20630, equations 1 to 3, which have the orthogonal form; the released code has
    the signed one.
    """
    exact = torch.promote_types(change.dtype, torch.float32)
    magnitude, cosine = change.to(exact)
    total = _turn(everyone[1].to(exact), direction).exp().masked_fill(~everyone_valid, 0).sum(1, keepdim=True)
    return magnitude * _turn(cosine, direction).exp() / total.clamp(min=torch.finfo(exact).tiny)


def share_of_sum(scores: Tensor, valid: Tensor) -> Tensor:
    """[B, N] scores over their sum in the row plus 1e-8, as TransPrune's released code has it; 0 where padded."""
    scores = scores.masked_fill(~valid, 0)
    return scores / (scores.sum(1, keepdim=True) + 1e-8)


def _turn(cosine: Tensor, direction: str) -> Tensor:
    if direction not in DIRECTIONS:
        raise ValueError(f"direction is {direction!r}. Choose from: {', '.join(DIRECTIONS)}.")
    return 1 - (cosine.abs() if direction == "orthogonal" else cosine)
