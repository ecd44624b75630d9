"""KNorm: keeps the slots with the shortest keys, which attention prefers."""

from __future__ import annotations

from torch import Tensor

from btp.core.cache_pruner import ScoreSlots
from btp.core.schedule import Stage
from btp.core.signals import Signal, Signals
from btp.core.slots import Slots


class KNorm(ScoreSlots):
    """A slot's score is minus the norm of its key, for each head by itself.

    Source: Devoto et al. 2024, arXiv:2406.11430; the paper leaves the first two layers whole (stages at llm.cache.0 and
    llm.cache.1 that keep 1.0).
    """

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """Keys."""
        return (Signal("keys", stage.site),)

    def score(self, slots: Slots, signals: Signals, stage: Stage) -> Tensor:
        """[B, Hkv, n]."""
        return -signals[self.needs(stage)[0]].float().norm(dim=-1)
