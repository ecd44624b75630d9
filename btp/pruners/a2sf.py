"""A2SF: keeps the slots that were looked at most, where every further row makes what was seen before count less."""

from __future__ import annotations

from torch import Tensor

from btp.core.cache_pruner import SCORE, ScoreSlots
from btp.core.check_settings import check_number, check_one_of
from btp.core.schedule import Stage
from btp.core.signals import Signal, Signals
from btp.core.slots import Slots
from btp.ops.slots import of_groups

HISTORIES = ("always", "overflow")


class A2SF(ScoreSlots):
    """A slot's score is the sum over query rows of decay^(rows since) times its attention, and over a group of heads.

    The phase of the stage is the paper's variant: `prefill` chooses once, behind the prompt (the released code),
    `both` goes on with `A = decay * A + S` in every step and evicts one slot of each head (the paper). A decay of 1 is
    H2O's sum, of 0 the newest row alone.

    Source: Jo and Shin 2024, arXiv:2407.20485, eq. 5 and 6; the released code chooses once, with 16 recent slots.

    Args:
        decay: the forgetting factor, 0 to 1.
        history: always | overflow. `overflow` forgets everything as long as the cache is within its budget, as the
            released cache of March 2025 does; the paper's equations do not.
    """

    accumulates = True

    def __init__(self, *, decay: float, history: str) -> None:
        check_number("pruner.method.decay", decay, "a number from 0 to 1", 0.0, 1.0)
        check_one_of("pruner.method.history", history, HISTORIES)
        self.decay, self.history = float(decay), history

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """Attention of all rows of the prompt, older ones counting less, and of each step's row."""
        return (Signal("attention", stage.site, "decayed", decay=self.decay),)

    def score(self, slots: Slots, signals: Signals, stage: Stage) -> Tensor:
        """[B, Hkv, n] A of eq. 6."""
        seen = of_groups(signals[self.needs(stage)[0]][:, :, 0], slots.groups)
        before = slots.carried.get(SCORE)
        score = seen if before is None else self.decay * before + seen
        within = self.history == "overflow" and slots.keep_counts(stage) == slots.host_alive
        return score.new_zeros(score.shape) if within else score
