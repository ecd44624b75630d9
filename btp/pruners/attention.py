"""Control: keeps what the text looks at most, and nothing else."""

from __future__ import annotations

from torch import Tensor

from btp.core.pruner import ScorePruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.signals import Signal, Signals
from btp.pruners.text_attention import TextAttention


class Attention(ScorePruner):
    """Ranks tokens by the text's attention in the layer before the stage, averaged over heads.

    Args:
        score: logits | probs.
        source: last | mean | similar, which text token looks, see `TextAttention`.
    """

    def __init__(self, *, score: str, source: str) -> None:
        self.attention = TextAttention(score, source)

    def check(self, schedule: Schedule) -> None:
        """Refuse a stage without a decoder layer before it."""
        super().check(schedule)
        for i, stage in enumerate(schedule):
            if not stage.withdraws_all:
                self.attention.check(i, stage, self.name)

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """The text's attention."""
        return self.attention.needs(stage)

    def reads_states(self, stage: Stage) -> bool:
        """Only to find out which text is like the picture."""
        return self.attention.source == "similar"

    def score(self, tokens: Tokens, signals: Signals, stage: Stage) -> Tensor:
        """[B, N] attention."""
        return self.attention.of(tokens, signals, stage)
