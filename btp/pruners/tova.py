"""TOVA: keeps what the newest row looks at."""

from __future__ import annotations

from torch import Tensor

from btp.core.cache_pruner import ScoreSlots
from btp.core.schedule import Stage
from btp.core.signals import Signal, Signals
from btp.core.slots import Slots


class TOVA(ScoreSlots):
    """A slot's score is the newest row's attention, averaged over all heads, which keep the same slots.

    Source: Oren et al. 2024, arXiv:2401.06104.
    """

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """Attention of the newest row."""
        return (Signal("attention", stage.site, "last"),)

    def score(self, slots: Slots, signals: Signals, stage: Stage) -> Tensor:
        """[B, 1, n]."""
        return signals[self.needs(stage)[0]][:, :, 0].mean(1, keepdim=True)
