"""A few rows of a layer's attention, from its queries and keys, while the fused kernel does the layer's
work.
"""

from __future__ import annotations

import torch
from torch import Tensor

from btp.core.ledger import View
from btp.engine.run import gather_rows


def attention_rows(
    query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, row: Tensor, view: View, form: str
) -> Tensor:
    """What the asked rows attend to, restricted to the visual columns; in float32 or better.

    Args:
        query: [B, Hq, S', d] behind RoPE.
        key: [B, Hkv, S', d] behind RoPE; grouped heads are not repeated.
        mask: as the layer got it: None (causal), bool or additive [B, 1, S', S'].
        scaling: the layer's own factor.
        row: [B, R] query rows, -1 padded.
        view: tokens alive in the layer.
        form: "probs", normalised over all keys, or "logits".

    Returns:
        [B, Hq, R, N]; padded rows and columns are 0.
    """
    B, Hq, S, d = query.shape
    Hkv = key.shape[1]
    row = row.to(query.device)
    exact = torch.promote_types(query.dtype, torch.float32)
    q = gather_rows(query, row, axis=2).to(exact).view(B, Hkv, Hq // Hkv, -1, d)  # [B, Hkv, group, R, d]
    logits = (q @ key.to(exact).transpose(-1, -2)[:, :, None] * scaling).view(B, Hq, -1, S)
    if mask is None:
        seen = torch.arange(S, device=row.device) <= row[..., None]
        seen = (seen & view.attended.to(row.device)[:, None, :])[:, None]  # [B, 1, R, S']
    else:
        mask = gather_rows(mask.expand(B, *mask.shape[1:]), row, axis=2)
        if mask.dtype == torch.bool:
            seen = mask
        else:
            seen = mask > torch.finfo(mask.dtype).min / 2
            logits = logits + mask.to(exact)
    logits = logits.masked_fill(~seen, -torch.inf)
    if form == "probs":
        padded = (row < 0)[:, None, :, None]
        logits = logits.masked_fill(padded, 0.0).softmax(dim=-1).masked_fill(padded, 0.0)
    return gather_rows(logits, view.visual_row, axis=3)


def last_row(view: View) -> Tensor:
    """[B, 1] row of the last real token; padding behind the prompt is passed over."""
    return (view.attended * torch.arange(view.rows, device=view.attended.device)).amax(dim=1, keepdim=True)
