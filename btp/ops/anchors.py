"""Anchors take in the tokens most like them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from btp.core.selection import MergePlan
from btp.ops.row_blocks import row_blocks


def into_anchors(x: Tensor, anchor: Tensor, member: Tensor, group: Tensor, share: float) -> MergePlan:
    """Every member flows into the anchor of its group that is most like it, by cosine.

    An anchor becomes `share` of itself plus the rest of the mean of its members; one without members stays as it is.
    Ties go to the lowest index. No host sync.

    Args:
        x: [B, N, D] tokens, finite also where they take no part.
        anchor: [B, N] bool.
        member: [B, N] bool, none an anchor.
        group: [B, N] integers; a member whose group has no anchor is dropped.
        share: Share of the anchor in what it becomes, in [0, 1].

    Returns:
        A plan in which all tokens that are neither stay as they are.
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    unit = normalize(x.detach().to(exact), dim=-1)
    B, N, _ = x.shape
    index = torch.arange(N, device=x.device).expand(B, N)
    best = torch.empty_like(group)
    for some in row_blocks(N, B * N * exact.itemsize, x.device):
        may = anchor[:, None] & (group[:, None] == group[:, some, None])  # [B, R, N]
        alike = (unit[:, some] @ unit.mT).masked_fill_(~may, -torch.inf)
        best[:, some] = alike.argmax(2).masked_fill_(~may.any(2), -1)
    target = torch.where(member, best, index)
    flows = (member & (target >= 0)).to(exact)
    into = target.clamp(min=0)
    members = torch.zeros_like(flows).scatter_add(1, into, flows)
    weight = torch.where(members > 0, share, 1.0)
    weight = torch.where(member, (1 - share) / members.gather(1, into).clamp(min=1), weight)
    return MergePlan(target, weight.to(exact), "sum")
