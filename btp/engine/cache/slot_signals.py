"""Attention signals over the slots of a K/V cache, block by block, in memory linear in the length."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from btp.core.signals import Signal
from btp.engine.hooks.attention_registry import Attending
from btp.engine.hooks.attention_rows import gather_rows
from btp.ops.slots import decayed, rows_that_count

BLOCK = 128  # query rows whose attention is held at once


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
    return _sum(now, count, decay, attended, None if even else last_rows(attended, count)), None


def last_rows(attended: Tensor, count: int) -> Tensor:
    """[B, count] the last real rows, ascending, -1 padded in front."""
    rows = attended.shape[1]
    place = torch.arange(rows, device=attended.device).masked_fill(~attended, -1).sort(1).values[:, -count:]
    missing = count - place.shape[1]
    return torch.nn.functional.pad(place, (missing, 0), value=-1) if missing else place


def _sum(now: Attending, count: int, decay: float, attended: Tensor, place: Tensor | None) -> Tensor:
    """[B, Hq, 1, n] decayed sum over the last `count` rows, in which nothing but a block of rows is held.

    Args:
        place: [B, count] which rows these are in a padded batch, -1 in front; None where they are the last ones.
    """
    query, key = now.query, now.key
    B, Hq, R, d = query.shape
    Hkv, n = key.shape[1:3]
    exact = torch.promote_types(query.dtype, torch.float32)
    turned = key.to(exact).flatten(0, 1).transpose(-1, -2)  # [B * Hkv, d, n]
    weight = decayed(count, decay, query.device).to(exact).expand(B, count)
    if place is not None:
        weight = weight * (place >= 0)
    # memory that is fresh in every block would cost as much as all else
    space = query.new_empty(2, B * Hq * min(BLOCK, count) * n, dtype=exact)
    total = query.new_zeros(B * Hkv, Hq // Hkv, n, dtype=exact)
    for start in range(0, count, BLOCK):
        end = min(start + BLOCK, count)
        first, last = R - count + start, R - count + end
        seen = n - R + last if now.mask is None and place is None else n  # columns that any row of the block may see
        rows = query[:, :, first:last] if place is None else gather_rows(query, place[:, start:end], axis=2)
        block = (rows.to(exact) * now.scaling).reshape(B * Hkv, -1, d)  # [B * Hkv, group * rows, d]
        logits, probs = (half[: block.shape[0] * block.shape[1] * seen].view(*block.shape[:2], seen) for half in space)
        torch.bmm(block, turned[..., :seen], out=logits)
        grouped = logits.view(B, Hkv, -1, end - start, seen)
        if now.mask is None and place is None:
            ahead = torch.ones(end - start, end - start, dtype=torch.bool, device=query.device).triu(1)
            grouped[..., seen - (end - start) :].masked_fill_(ahead, -torch.inf)
        elif place is None:
            _hide(grouped, now.mask[:, :, first:last])  # type: ignore[index]
        else:
            _hide(grouped, _mask_of(now, place[:, start:end], attended))
        torch.softmax(logits, -1, out=probs)
        part = weight[:, None, None, None, start:end]  # [B, 1, 1, 1, rows]
        total[..., :seen] += (part @ probs.view(B, Hkv, -1, end - start, seen)).view(B * Hkv, -1, seen)
    return total.view(B, Hq, 1, n)


def _mask_of(now: Attending, place: Tensor, attended: Tensor) -> Tensor:
    """[B, 1 or Hq, R', n] what some rows [B, R'] of a padded batch see; rows that there are not see everything."""
    if now.mask is None:
        R, n = attended.shape[1], now.key.shape[2]
        old = torch.ones(len(place), n - R, dtype=torch.bool, device=place.device)
        real = torch.cat([old, attended], dim=1)[:, None]  # [B, 1, n]
        seen = (torch.arange(n, device=place.device) <= (place + n - R)[..., None]) & real
        return (seen | (place < 0)[..., None])[:, None].to(now.query.device)
    wide = now.mask.expand(len(place), *now.mask.shape[1:])
    mask = gather_rows(wide, place, axis=2)
    return mask | (place < 0)[:, None, :, None].to(mask.device) if mask.dtype == torch.bool else mask


def _probs(now: Attending, place: Tensor, attended: Tensor) -> Tensor:
    """[B, Hq, R', n] attention of some rows [B, R'], 0 where padded."""
    query, key = gather_rows(now.query, place, axis=2), now.key
    B, Hq, rows, d = query.shape
    Hkv, n = key.shape[1:3]
    exact = torch.promote_types(query.dtype, torch.float32)
    block = (query.to(exact) * now.scaling).view(B, Hkv, -1, d)
    logits = (block @ key.to(exact).transpose(-1, -2)).view(B, Hkv, Hq // Hkv, rows, n)
    _hide(logits, _mask_of(now, place, attended))
    padded = (place < 0)[:, None, :, None].to(query.device)
    return logits.view(B, Hq, rows, n).softmax(-1).masked_fill(padded, 0.0)


def _hide(logits: Tensor, mask: Tensor) -> None:
    """Put logits [B, Hkv, group, R, n] under a mask [B or 1, 1 or Hq, R, n], bool or added."""
    groups = logits.shape[1:3]
    mask = mask[:, :, None] if mask.shape[1] == 1 else mask.view(len(mask), *groups, *mask.shape[2:])
    if mask.dtype == torch.bool:
        logits.masked_fill_(~mask, -torch.inf)
    else:
        logits.add_(mask).masked_fill_(mask < torch.finfo(mask.dtype).min / 2, -torch.inf)
