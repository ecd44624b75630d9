"""KNorm: keeps the slots with the shortest keys, which attention prefers."""

from __future__ import annotations

import torch
from torch import Tensor

from btp.core.cache_pruner import SCORE, ScoreSlots
from btp.core.schedule import Stage
from btp.core.signals import Signal, Signals
from btp.core.slots import Slots


class KNorm(ScoreSlots):
    """A slot's score is minus the norm of its key, for each head by itself.

    Source: Devoto et al. 2024, arXiv:2406.11430; the paper leaves the first two layers whole (stages at llm.cache.0 and
    llm.cache.1 that keep 1.0).
    """

    accumulates = True

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """Keys."""
        return (Signal("keys", stage.site),)

    def score(self, slots: Slots, signals: Signals, stage: Stage) -> Tensor:
        """[B, Hkv, n]; a key's norm never changes, so that a step takes the newest alone."""
        keys, known = signals[self.needs(stage)[0]], slots.carried.get(SCORE)
        fresh = -(keys if known is None else keys[:, :, -slots.new :]).float().norm(dim=-1)
        return fresh if known is None else torch.cat([known[..., : -slots.new], fresh], dim=2)
