"""StreamingLLM: keeps the first slots, which draw attention whatever they hold, and the most recent ones."""

from __future__ import annotations

from torch import Tensor

from btp.core.cache_pruner import ScoreSlots
from btp.core.schedule import Stage
from btp.core.signals import Signals
from btp.core.slots import Slots


class Streaming(ScoreSlots):
    """The newest slots stay, beside the `first` of the stage (attention sinks). Nothing is looked at.

    Source: Xiao et al. 2023, arXiv:2309.17453. There positions are counted anew inside the cache; here keys stay as
    they were turned.
    """

    def score(self, slots: Slots, signals: Signals, stage: Stage) -> Tensor:
        """[B, 1, n] positions: all heads keep the same."""
        return slots.position[:, :1].float()
