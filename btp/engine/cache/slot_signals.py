"""Attention signals over the slots of a K/V cache, block by block, in memory linear in the length."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from btp.core.signals import Signal
from btp.engine.hooks.attention_registry import Attending
from btp.engine.hooks.attention_rows import gather_rows
from btp.ops.slots import decayed, rows_that_count

BLOCK = 256  # query rows whose attention is held at once


def one_row(now: Attending, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The attention of a decode step, made here where its probabilities are asked for too, so that it is made once.

    Args:
        mask: Mask as the layer's function takes it.

    Returns:
        [B, 1, Hq, d] what the layer's function returns, and [B, Hq, 1, n] probabilities in float32 or better.
    """
    place = torch.zeros(len(now.query), 1, dtype=torch.long, device=now.query.device)
    probs = _probs(replace(now, mask=mask), place, place == 0)
    B, Hq, _, n = probs.shape
    grouped = probs.to(now.value.dtype).view(B, now.value.shape[1], -1, n)
    return (grouped @ now.value).view(B, Hq, 1, -1).transpose(1, 2).contiguous(), probs


def slot_signal(
    signal: Signal, now: Attending, attended: Tensor, even: bool, probs: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """A signal at a cache, from the attention that a layer makes.

    Args:
        signal: Signal as declared.
        now: the layer's attention; without a mask each row sees the slots up to its own.
        attended: [B, R] rows of this forward that are tokens.
        even: all of them are.
        probs: Probabilities of a decode step, where `one_row` made them.

    Returns:
        The tensor as `Signal` says, and [B, window] which of its rows are real for rows window.
    """
    if signal.kind != "attention":
        return (now.key if signal.kind == "keys" else now.value), None
    if probs is not None:
        return probs, None
    rows = now.query.shape[2]
    if signal.rows == "window":
        assert signal.window is not None
        place = last_rows(attended, signal.window)
        return _probs(now, place, attended), place >= 0
    decay = signal.decay if signal.rows == "decayed" else 0.0
    assert decay is not None
    count = rows_that_count(decay, rows)
    if not even:
        return _sum(now, last_rows(attended, count), attended, decay), None
    return _sum_even(now, count, decay), None


def last_rows(attended: Tensor, count: int) -> Tensor:
    """[B, count] the last real rows, ascending, -1 padded in front."""
    rows = attended.shape[1]
    place = torch.arange(rows, device=attended.device).masked_fill(~attended, -1).sort(1).values[:, -count:]
    missing = count - place.shape[1]
    return torch.nn.functional.pad(place, (missing, 0), value=-1) if missing else place


def _sum_even(now: Attending, count: int, decay: float) -> Tensor:
    """[B, Hq, 1, n] decayed sum over the last `count` rows of a forward without padding."""
    query, key = now.query, now.key
    B, Hq, R, d = query.shape
    Hkv, n = key.shape[1:3]
    exact = torch.promote_types(query.dtype, torch.float32)
    turned = key.to(exact).transpose(-1, -2)  # [B, Hkv, d, n]
    weight = decayed(count, decay, query.device).to(exact)
    total = torch.zeros(B, Hkv, Hq // Hkv, n, dtype=exact, device=query.device)
    for start in range(R - count, R, BLOCK):
        end = min(start + BLOCK, R)
        seen = n - R + end if now.mask is None else n  # columns that any row of the block may see
        block = (query[:, :, start:end].to(exact) * now.scaling).reshape(B, Hkv, -1, d)  # [B, Hkv, group * rows, d]
        logits = (block @ turned[..., :seen]).view(B, Hkv, -1, end - start, seen)
        if now.mask is None:
            ahead = torch.ones(end - start, end - start, dtype=torch.bool, device=query.device).triu(1)
            logits[..., seen - (end - start) :].masked_fill_(ahead, -torch.inf)
        else:
            logits = _masked(logits, now.mask[:, :, start:end])
        probs = logits.softmax(-1)
        part = weight[start - (R - count) : end - (R - count)]
        total[..., :seen] += (part @ probs.view(-1, end - start, seen)).view(B, Hkv, -1, seen)
    return total.view(B, Hq, 1, n)


def _sum(now: Attending, place: Tensor, attended: Tensor, decay: float) -> Tensor:
    """The same over rows [B, count] of a padded batch, -1 in front of those that there are."""
    count = place.shape[1]
    weight = decayed(count, decay, place.device)
    total = torch.zeros((), device=place.device)
    for start in range(0, count, BLOCK):
        probs = _probs(now, place[:, start : start + BLOCK], attended)
        total = total + (probs * weight[start : start + BLOCK, None]).sum(2, keepdim=True)
    return total


def _probs(now: Attending, place: Tensor, attended: Tensor) -> Tensor:
    """[B, Hq, R', n] attention of some rows [B, R'], 0 where padded."""
    query, key = gather_rows(now.query, place, axis=2), now.key
    B, Hq, rows, d = query.shape
    Hkv, n = key.shape[1:3]
    R = now.query.shape[2]
    exact = torch.promote_types(query.dtype, torch.float32)
    block = (query.to(exact) * now.scaling).view(B, Hkv, -1, d)
    logits = (block @ key.to(exact).transpose(-1, -2)).view(B, Hkv, Hq // Hkv, rows, n)
    place = place.to(query.device)
    if now.mask is None:
        old = torch.ones(B, n - R, dtype=torch.bool, device=query.device)
        real = torch.cat([old, attended.to(query.device)], dim=1)[:, None]  # [B, 1, n]
        seen = (torch.arange(n, device=query.device) <= (place + n - R)[..., None]) & real
        mask = seen[:, None]
    else:
        wide = now.mask.expand(B, *now.mask.shape[1:])
        mask = gather_rows(wide, place, axis=2)
    logits = _masked(logits, mask).view(B, Hq, rows, n)
    padded = (place < 0)[:, None, :, None]
    return logits.masked_fill(padded, 0.0).softmax(-1).masked_fill(padded, 0.0)


def _masked(logits: Tensor, mask: Tensor) -> Tensor:
    """Logits [B, Hkv, group, R, n] under a mask [B, 1 or Hq, R, n], bool or added."""
    B, Hkv, groups = logits.shape[:3]
    mask = mask[:, :, None] if mask.shape[1] == 1 else mask.view(B, Hkv, groups, *mask.shape[2:])
    if mask.dtype == torch.bool:
        return logits.masked_fill(~mask, -torch.inf)
    return logits.masked_fill(mask < torch.finfo(mask.dtype).min / 2, -torch.inf) + mask.to(logits.dtype)
