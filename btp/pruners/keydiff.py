"""KeyDiff: keeps the slots whose keys are least like all others."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from btp.core.cache_pruner import ScoreSlots
from btp.core.keep import on_device
from btp.core.schedule import Stage
from btp.core.signals import Signal, Signals
from btp.core.slots import Slots, SlotSelection
from btp.core.topk import marked
from btp.ops.slots import gather_slots

EPSILON = 1e-12
SIZE = "size"  # under which the norms of keys travel with the slots, since they never change
SUM = "sum"  # under which the sum of all keys of unit length stands beside a head's slots


class KeyDiff(ScoreSlots):
    """A slot's score is minus the cosine of its key to the mean of all keys of unit length, for each head by itself.

    The mean is not made anew in each step: the newest key joins its sum, and the one that leaves is taken from it, so
    that a step reads the keys once. The sum is held in float64, where that adds up to what all keys together give.

    Source: Park et al. 2025, arXiv:2504.15364, whose algorithm takes the prompt block by block; here it is taken whole.
    """

    accumulates = True

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """Keys."""
        return (Signal("keys", stage.site),)

    def evict(self, slots: Slots, signals: Signals, stage: Stage) -> SlotSelection:
        """The slots that stay, the norms of all, and the sum over those that stay."""
        keys = signals[self.needs(stage)[0]]
        size = _sizes(slots, keys)
        total = _grown(slots, keys, size)
        found = SlotSelection(None)
        if slots.due:
            known = replace(slots, carried={SIZE: size}, running={SUM: total})
            found = super().evict(known, signals, stage)
            if stage.phase != "prefill":  # no step asks for it otherwise
                total = _without(known, keys, found.keep, slots.keep_counts(stage))
        return replace(found, carried={SIZE: size}, running={SUM: total})

    def score(self, slots: Slots, signals: Signals, stage: Stage) -> Tensor:
        """[B, Hkv, n]."""
        keys = signals[self.needs(stage)[0]].float()
        anchor = normalize(slots.running[SUM], dim=-1, eps=EPSILON).float()[:, :, None]  # [B, Hkv, 1, d]: of the mean
        return -(keys @ anchor.transpose(-1, -2))[..., 0] / slots.carried[SIZE]  # on a CPU faster than by a column


def _sizes(slots: Slots, keys: Tensor) -> Tensor:
    """[B, Hkv, n] norms of keys [B, Hkv, n, d]: those of older slots as they came along."""
    known = slots.carried.get(SIZE)
    fresh = (keys if known is None else keys[:, :, -slots.new :]).float().norm(dim=-1).clamp(min=EPSILON)
    return fresh if known is None else torch.cat([known[..., : -slots.new], fresh], dim=2)


def _grown(slots: Slots, keys: Tensor, size: Tensor) -> Tensor:
    """[B, Hkv, d] sum over all slots: the known one, and what is new."""
    if SUM not in slots.running:
        return _sum(keys, size, slots.valid)
    newest = slice(-slots.new, None)
    fresh = (slots.carried[SIZE][..., newest] == 0) & slots.valid[..., newest]
    return slots.running[SUM] + _sum(keys[:, :, newest], size[..., newest], fresh)


def _without(slots: Slots, keys: Tensor, keep: Tensor | None, counts: tuple[int, ...]) -> Tensor:
    """[B, Hkv, d] sum over the slots that stay."""
    total, size = slots.running[SUM], slots.carried[SIZE]
    if keep is None:
        return total
    n = slots.position.shape[2]
    leave = [alive - count for alive, count in zip(slots.host_alive, counts, strict=True)]
    if max(leave) > 1:
        return _sum(keys, size, marked(keep.flatten(0, 1), n).view(slots.position.shape))
    place = torch.arange(n, device=keep.device)
    victim = ((place * slots.valid).sum(2) - keep.clamp(min=0).sum(2))[..., None]  # the only one that keep lacks
    lost = on_device(leave, keep.device)[:, None, None].expand_as(victim) > 0
    return total - _sum(gather_slots(keys, victim), gather_slots(size, victim), lost)


def _sum(keys: Tensor, size: Tensor, counted: Tensor) -> Tensor:
    """[B, Hkv, d] of keys [B, Hkv, n, d] in unit length, where they are counted, in float64."""
    weight = size.reciprocal().masked_fill(~counted, 0.0)
    if keys.shape[2] == 1:  # as one key was added, so it is taken away
        return (weight[..., None] * keys.float())[:, :, 0].double()
    return (weight[:, :, None] @ keys.float())[:, :, 0].double()
