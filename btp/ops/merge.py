"""Merges tokens into the ones that stay, as a plan says."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

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
    B, N, D = x.shape
    K, device = keep.shape[1], x.device
    if not B * K:
        return x.new_zeros(B, K, D)
    exact = torch.promote_types(x.dtype, torch.float32)
    column = torch.arange(K, device=device)
    place = plan.target.new_full((B, N + 1), K)  # where each token stands in keep; K for the others
    place = place.scatter_(1, keep.masked_fill(keep < 0, N), column.expand(B, K))[:, :N]
    target = plan.target.clamp(min=0)
    slot = place.gather(1, target)
    flows = (plan.target >= 0) & (slot < K)
    weight = plan.weight.to(exact).masked_fill(~flows, 0)
    if plan.combine == "mean":
        total = torch.zeros_like(weight).scatter_add_(1, target, weight).gather(1, target)
        weight = weight / torch.where(total > 0, total, 1.0)
    # what is dropped reads a kept token with weight 0 instead, spread evenly, so that no sum gets long
    index = torch.arange(N, device=device).expand(B, N)
    slot = torch.where(flows, slot, index % K)
    source = torch.where(flows, index, keep.clamp(min=0).gather(1, slot))
    batch = torch.arange(B, device=device)[:, None]
    slot, order = (slot + batch * K).flatten().sort(stable=True)
    offsets = torch.searchsorted(slot, torch.arange(B * K, device=device))
    source, weight = (source + batch * N).flatten()[order], weight.flatten()[order]
    # sums of weighted rows without a table of all weighted ones, and in one order on any device
    rows = x.to(exact).reshape(B * N, D)
    summed = embedding_bag(source, rows, offsets, mode="sum", per_sample_weights=weight)
    return summed.view(B, K, D).to(x.dtype)


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
