"""A few rows of a layer's attention, from its queries and keys, while the fused kernel does the layer's work."""

from __future__ import annotations

import torch
from torch import Tensor

from btp.core.ledger import View

BLOCK = 256  # query rows whose attention is held at once for a mean over all of them


def attention_rows(
    query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, row: Tensor, view: View, form: str
) -> Tensor:
    """What the asked rows attend to, restricted to the visual columns; in float32 or better.

    Args:
        query: [B, Hq, S', d] behind RoPE.
        key: [B, Hkv, S', d] behind RoPE; grouped heads are not repeated.
        mask: Mask as the layer got it: None (causal), bool or additive [B, 1, S', S'].
        scaling: the layer's own factor.
        row: [B, R] query rows, -1 padded.
        view: tokens alive in the layer.
        form: "probs", normalised over all keys, or "logits".

    Returns:
        [B, Hq, R, N]; padded rows and columns are 0.
    """
    row = row.to(query.device)
    allowed = None
    if mask is None:
        allowed = torch.arange(key.shape[2], device=row.device) <= row[..., None]
        allowed = (allowed & view.attended.to(row.device)[:, None, :])[:, None]  # [B, 1, R, S']
    logits = _logits(gather_rows(query, row, axis=2), key, scaling)
    found = _finish(logits, _of_rows(mask, row), allowed, (row < 0)[:, None, :, None], form)
    return gather_rows(found, view.visual_row, axis=3)


def slot_attention(query: Tensor, key: Tensor, scaling: float, row: Tensor, seen: Tensor, form: str) -> Tensor:
    """What the asked rows attend to among the slots of a cache, whose order says nothing; in float32 or better.

    Args:
        query: [B, Hq, R, d] behind RoPE.
        key: [B, Hkv, n, d] behind RoPE, of all slots; grouped heads are not repeated.
        scaling: the layer's own factor.
        row: [B, r] query rows.
        seen: [B, n] bool, slots that these rows may look at.
        form: "probs", normalised over the slots seen, or "logits".

    Returns:
        [B, Hq, r, n]; slots that are not seen have probability 0, and logits of -inf.
    """
    logits = _logits(gather_rows(query, row, axis=2), key, scaling)
    return _finish(logits, None, seen[:, None, None, :].to(query.device), None, form)


def mean_rows(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, view: View) -> Tensor:
    """[B, Hq, 1, N] attention probabilities averaged over all real query rows, made block by block."""
    S, device = query.shape[2], query.device
    total = torch.zeros(())
    attended = view.attended.to(device)
    for start in range(0, S, BLOCK):
        row = torch.arange(start, min(start + BLOCK, S), device=device)
        row = row.masked_fill(~attended[:, start : start + BLOCK], -1)  # [B, R]
        allowed = (torch.arange(S, device=device) <= row[..., None]) & attended[:, None, :]
        logits = _logits(gather_rows(query, row, axis=2), key, scaling)
        closed = (row < 0)[:, None, :, None]
        found = _finish(logits, _of_rows(mask, row), allowed[:, None] if mask is None else None, closed, "probs")
        total = total.to(device) + found.sum(2, keepdim=True)
    mean = total / attended.sum(1)[:, None, None, None].clamp(min=1)
    return gather_rows(mean, view.visual_row, axis=3)


def tower_rows(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scaling: float,
    rows: str,
    form: str,
    class_tokens: int = 0,
    real: Tensor | None = None,
) -> Tensor:
    """Attention rows of a vision tower, where every token attends to every other.

    Args:
        query, key: [P, H, T, d], class tokens in front.
        mask: None, or additive [P, 1, 1 or T, T].
        scaling: the layer's own factor.
        rows: "cls", or "mean" over all query rows.
        form: "probs" or "logits".
        class_tokens: how many rows lie in front of the patches.
        real: [P, T] bool, query rows that count for the mean; None for all.

    Returns:
        [P, H, 1, N] over the patches, or over all rows where none is said to lie in front of them.
    """
    if rows == "cls":
        found = _finish(_logits(query[:, :, :1], key, scaling), _head(mask), None, None, form)
        return found[..., class_tokens:]
    total = torch.zeros((), device=query.device)
    for start in range(0, query.shape[2], BLOCK):
        part = _logits(query[:, :, start : start + BLOCK], key, scaling)
        bias = mask if mask is None or mask.shape[2] == 1 else mask[:, :, start : start + BLOCK]
        probs = _finish(part, bias, None, None, "probs")
        if real is not None:
            probs = probs * real[:, None, start : start + BLOCK, None]
        total = total + probs.sum(2, keepdim=True)
    count = query.shape[2] if real is None else real.sum(1)[:, None, None, None]
    return (total / count)[..., class_tokens:]


def last_row(view: View) -> Tensor:
    """[B, 1] row of the last real token; padding behind the prompt is passed over."""
    return (view.attended * torch.arange(view.rows, device=view.attended.device)).amax(dim=1, keepdim=True)


def gather_rows(x: Tensor, row: Tensor, axis: int = 1) -> Tensor:
    """Rows of `x` along `axis`, per batch row; padding (-1) becomes 0.

    Args:
        x: [B, ..., S, ...] with tokens along `axis`.
        row: [B, N] rows, -1 padded.
    """
    shape = [1] * x.dim()
    shape[0], shape[axis] = row.shape
    size = list(x.shape)
    size[axis] = row.shape[1]
    row = row.to(x.device).view(shape)
    return x.gather(axis, row.clamp(min=0).expand(size)).masked_fill(row < 0, 0)


def _logits(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """[B, Hq, R, S'] in float32 or better; grouped heads share their key without repeating it."""
    B, Hq, R, d = query.shape
    exact = torch.promote_types(query.dtype, torch.float32)
    grouped = query.to(exact).view(B, key.shape[1], Hq // key.shape[1], R, d)  # [B, Hkv, group, R, d]
    return (grouped @ key.to(exact).transpose(-1, -2)[:, :, None] * scaling).view(B, Hq, R, key.shape[2])


def _finish(logits: Tensor, mask: Tensor | None, allowed: Tensor | None, padded: Tensor | None, form: str) -> Tensor:
    if mask is not None and mask.dtype != torch.bool:
        logits = logits + mask.to(logits.dtype)
        mask = mask > torch.finfo(mask.dtype).min / 2
    for seen in (mask, allowed):
        if seen is not None:
            logits = logits.masked_fill(~seen, -torch.inf)
    if form == "logits":
        return logits
    if padded is None:
        return logits.softmax(dim=-1)
    return logits.masked_fill(padded, 0.0).softmax(dim=-1).masked_fill(padded, 0.0)


def _of_rows(mask: Tensor | None, row: Tensor) -> Tensor | None:
    """[B, 1, R, S'] the mask of the asked rows."""
    return None if mask is None else gather_rows(mask.expand(len(row), *mask.shape[1:]), row, axis=2)


def _head(mask: Tensor | None) -> Tensor | None:
    return mask if mask is None else mask[:, :, :1]
