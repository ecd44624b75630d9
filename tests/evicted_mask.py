"""Attention mask of per-step eviction over one full attention map, for whole texts in one forward."""

from __future__ import annotations

import torch
from torch import Tensor


def evicted_mask(logits: Tensor, first: int, select: int, recent: int, decay: float) -> Tensor:
    """Which keys each row still sees where every row from the budget on evicts one key of each head.

    Row t adds its attention over what it sees, renewed to sum 1, to `decay` times the score so far; then the lowest
    score among the keys from `first` to t - `recent` leaves, for the rows behind. Ties go to the first.

    Args:
        logits: [B, H, L, L]; entries above the diagonal may be anything.
        first, select, recent: slots of each kind; their sum is the budget, and a row sees one more.
        decay: forgetting factor, 0 to 1.

    Returns:
        [B, H, L, L] bool; true above the diagonal.

    Source: Jo and Shin 2024, arXiv:2407.20485, and the simulation in the first commit of its code.
    """
    B, H, L, _ = logits.shape
    place = torch.arange(L, device=logits.device)
    probs = logits.float().masked_fill(place > place[:, None], -torch.inf).softmax(-1)
    budget = first + select + recent
    mask = torch.ones(B, H, L, L, dtype=torch.bool, device=logits.device)
    alive = torch.ones(B, H, L, dtype=torch.bool, device=logits.device)
    score = torch.zeros(B, H, L, device=logits.device)
    for t in range(L):
        mask[:, :, t] = alive
        row = probs[:, :, t] * alive
        score = decay * score + row / row.sum(-1, keepdim=True)
        if t < budget:
            continue
        may = alive & (place >= first) & (place <= t - recent)
        alive = alive.scatter(2, score.masked_fill(~may, torch.inf).argmin(-1, keepdim=True), False)
    return mask | (place > place[:, None])
