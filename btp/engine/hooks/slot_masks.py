"""Which slots of a cache a row sees, by positions: one rule for cuts, eviction, revival and padding.

A row sees a slot where the slot holds a token that stands no later than the row. A row that is padding sees itself,
since a row without any key turns into NaN in some kernels; nobody sees it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def seen_slots(row: Tensor, slot: Tensor) -> Tensor:
    """[B, H, R, n] bool: slots that each row of this forward sees.

    Args:
        row: [B, R] positions of the rows, -1 where padded.
        slot: [B, H, n] positions of the slots, -1 without a token; the last R are those of the rows themselves. H is 1,
            or as many as there are key heads.
    """
    now = row[:, None, :, None]
    seen = (slot[:, :, None] >= 0) & (slot[:, :, None] <= now)
    R, n = row.shape[1], slot.shape[2]
    itself = torch.arange(n, device=row.device) == torch.arange(n - R, n, device=row.device)[:, None]
    return torch.where(now < 0, itself, seen)


def as_mask(seen: Tensor, attention: str, query: Tensor, kv_heads: int) -> Tensor:
    """A mask as the host's attention function takes it.

    Args:
        seen: [B, H, R, n] bool, H 1 or `kv_heads`.
        attention: "eager" (added to the logits), or another one (bool).
        query: [B, Hq, R, d], for the number of heads, the dtype and the device.
        kv_heads: key heads.

    Returns:
        [B, 1 or Hq, R, n].
    """
    seen = seen.to(query.device)
    if seen.shape[1] > 1:
        seen = seen.repeat_interleave(query.shape[1] // kv_heads, dim=1)
    if attention != "eager":
        return seen
    return torch.zeros_like(seen, dtype=query.dtype).masked_fill(~seen, torch.finfo(query.dtype).min)
