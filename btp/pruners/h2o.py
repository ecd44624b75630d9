"""H2O: keeps the heavy hitters, the slots that all rows together looked at most, and the most recent ones."""

from __future__ import annotations

from torch import Tensor

from btp.core.cache_pruner import SCORE, ScoreSlots
from btp.core.schedule import Stage
from btp.core.signals import Signal, Signals
from btp.core.slots import Slots
from btp.ops.slots import of_groups


class H2O(ScoreSlots):
    """A slot's score is the sum of all attention it ever received, summed over a group of heads.

    Source: Zhang et al. 2023, arXiv:2306.14048, alg. 1; half of the slots are recent ones (`recent: 0.5`).
    """

    accumulates = True

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """Attention of all rows of the prompt, and of each step's row."""
        return (Signal("attention", stage.site, "decayed", decay=1.0),)

    def score(self, slots: Slots, signals: Signals, stage: Stage) -> Tensor:
        """[B, Hkv, n] what each slot received so far."""
        seen = of_groups(signals[self.needs(stage)[0]][:, :, 0], slots.groups)
        return seen + slots.carried[SCORE] if SCORE in slots.carried else seen
