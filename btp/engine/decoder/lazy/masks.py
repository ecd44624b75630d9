"""Which slots a layer's rows see, where rows and slots are not in one order and not all slots are seen."""

from __future__ import annotations

import torch
from torch import Tensor


def row_slot_mask(rows: Tensor, slots: Tensor, seen: Tensor) -> Tensor:
    """A row sees a slot that is seen in this step and not later than itself. Filling sees itself alone.

    Args:
        rows: [B, R] column of each row, -1 for filling.
        slots: [B, n] column of each slot, -1 for nobody's; the rows' own are the last R.
        seen: [B, T] bool, columns that are seen.

    Returns:
        [B, 1, R, n] bool.
    """
    open_slots = (slots >= 0) & seen.gather(1, slots.clamp(min=0))  # [B, n]
    mask = open_slots[:, None, :] & (slots[:, None, :] <= rows[:, :, None])
    R, n = rows.shape[1], slots.shape[1]
    itself = torch.arange(n, device=rows.device) == torch.arange(n - R, n, device=rows.device)[:, None]  # [R, n]
    return (mask | (itself & (rows < 0)[:, :, None]))[:, None]


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The same as numbers that are added to logits."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
