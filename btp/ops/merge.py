"""Merges tokens into the ones that stay, as a plan says."""

from __future__ import annotations

import torch
from torch import Tensor

from btp.core.selection import MergePlan


def merge_states(x: Tensor, keep: Tensor, plan: MergePlan) -> Tensor:
    """What the kept tokens hold once the others have flowed into them.

    Args:
        x: [B, N, D] states, finite also where padded.
        keep: [B, K] indices into N, -1 padded.
        plan: targets and weights, [B, N].

    Returns:
        [B, K, D] in the dtype of x; summed in float32 or better. Padded rows are arbitrary finite values.
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    flows = plan.target >= 0
    weight = plan.weight.to(exact).masked_fill(~flows, 0)
    target = plan.target.clamp(min=0)
    summed = torch.zeros_like(x, dtype=exact)
    summed.scatter_add_(1, target[..., None].expand_as(x), x.to(exact) * weight[..., None])
    if plan.combine == "mean":
        total = torch.zeros_like(weight).scatter_add_(1, target, weight)
        summed = summed / torch.where(total > 0, total, 1.0)[..., None]
    index = keep.clamp(min=0)[..., None].expand(-1, -1, x.shape[-1])
    return summed.gather(1, index).to(x.dtype)


def merge_sizes(size: Tensor, keep: Tensor, plan: MergePlan) -> Tensor:
    """[B, K] original tokens that each kept token stands for behind the merge; 0 where padded.

    Args:
        size: [B, N] what each stood for before.
        keep: [B, K] indices into N, -1 padded.
        plan: targets, [B, N].
    """
    flows = plan.target >= 0
    total = torch.zeros_like(size).scatter_add_(1, plan.target.clamp(min=0), size.masked_fill(~flows, 0))
    return total.gather(1, keep.clamp(min=0)).masked_fill(keep < 0, 0)
