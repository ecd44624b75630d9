"""KeyDiff: keeps the slots whose keys are least like all others."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from btp.core.cache_pruner import ScoreSlots
from btp.core.schedule import Stage
from btp.core.signals import Signal, Signals
from btp.core.slots import Slots, SlotSelection

EPSILON = 1e-12
SIZE = "size"  # under which the norms of keys travel with the slots, since they never change


class KeyDiff(ScoreSlots):
    """A slot's score is minus the cosine of its key to the mean of all keys of unit length, for each head by itself.

    Source: Park et al. 2025, arXiv:2504.15364, whose algorithm takes the prompt block by block; here it is taken whole.
    """

    accumulates = True

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """Keys."""
        return (Signal("keys", stage.site),)

    def evict(self, slots: Slots, signals: Signals, stage: Stage) -> SlotSelection:
        """The slots that stay, and the norms of all; between two evictions these alone."""
        sizes = {SIZE: self._sizes(slots, signals[self.needs(stage)[0]])}
        if not slots.due:
            return SlotSelection(None, carried=sizes)
        return replace(super().evict(slots, signals, stage), carried=sizes)

    def score(self, slots: Slots, signals: Signals, stage: Stage) -> Tensor:
        """[B, Hkv, n]."""
        keys = signals[self.needs(stage)[0]].float()
        size = self._sizes(slots, keys)
        weight = size.reciprocal().masked_fill(~slots.valid, 0.0)
        anchor = normalize(weight[:, :, None] @ keys, dim=-1, eps=EPSILON)  # [B, Hkv, 1, d] where the mean points
        return -(keys @ anchor.transpose(-1, -2))[..., 0] / size

    def _sizes(self, slots: Slots, keys: Tensor) -> Tensor:
        """[B, Hkv, n] norms of keys [B, Hkv, n, d]: those of older slots as they came along."""
        known = slots.carried.get(SIZE)
        fresh = (keys if known is None else keys[:, :, -slots.new :]).float().norm(dim=-1).clamp(min=EPSILON)
        return fresh if known is None else torch.cat([known[..., : -slots.new], fresh], dim=2)
