"""Outliers of a row by the interquartile range."""

from __future__ import annotations

import torch
from torch import Tensor


def outliers_above(x: Tensor, valid: Tensor, times: float = 1.5) -> Tensor:
    """Mark what lies above the third quartile by more than `times` the distance between the quartiles.

    Quartiles are interpolated linearly between the two nearest of the sorted numbers. No host sync.

    Args:
        x: [B, N].
        valid: [B, N] bool, numbers that count, in front.
        times: Multiple of the distance between first and third quartile.

    Returns:
        [B, N] bool.

    Source: the rule of box plots, as used by Shang et al. 2024, arXiv:2403.15388, section 3.2.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    ordered = x.masked_fill(~valid, torch.inf).sort(dim=1).values
    last = (valid.sum(1, keepdim=True) - 1).clamp(min=0)
    low, high = (_at(ordered, last * share) for share in (0.25, 0.75))
    return (x > high + times * (high - low)) & valid


def _at(ordered: Tensor, place: Tensor) -> Tensor:
    """[B, 1] numbers at places [B, 1] between the columns of `ordered`."""
    below = place.floor()
    share = place - below
    first = below.long()
    second = (first + 1).clamp(max=ordered.shape[1] - 1)
    low = ordered.gather(1, first)
    high = torch.where(share > 0, ordered.gather(1, second), low)  # inf of the padding counts for nothing
    return low + share.to(ordered.dtype) * (high - low)
