"""PyramidDrop: between groups of layers, keeps what the next layer's last prompt token would look at."""

from __future__ import annotations

from torch import Tensor

from btp.core.pruner import ScorePruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.signals import Signal, Signals


class PDrop(ScorePruner):
    """Ranks tokens by the attention of the prompt's last token in the layer behind the stage, averaged over heads.

    The attention is previewed: that layer's own norm and projections on the states in front of it, at the positions
    that hold there, normalised over all keys. Nothing has to run for it, so a stage may lie at `llm.layer.0`.

    Source: Xing et al. 2024, arXiv:2410.17247, and its released code, which renumbers positions behind every cut;
    the paper does not say so. "Drop after 8 layers" there is `llm.layer.8` here. With rows behind the last
    instruction token (training), the code asks that token; here it is always the prompt's last.
    """

    def check(self, schedule: Schedule) -> None:
        """Refuse a stage without a decoder layer behind it."""
        super().check(schedule)
        for i, stage in enumerate(schedule):
            if not stage.withdraws_all and (stage.site.tower, stage.site.kind) != ("llm", "layer"):
                raise ValueError(
                    f"schedule.{i}.site is {stage.site}, but pruner {self.name!r} ranks by what the decoder layer "
                    f"behind the stage would look at. Set schedule.{i}.site to llm.layer.N."
                )

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """One row of the coming layer's attention."""
        return (_coming(stage),)

    def score(self, tokens: Tokens, signals: Signals, stage: Stage) -> Tensor:
        """[B, N] attention in float32."""
        return signals[_coming(stage)].float().mean((1, 2))


def _coming(stage: Stage) -> Signal:
    return Signal("preview", stage.site, "last", "probs")
