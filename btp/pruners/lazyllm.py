"""LazyLLM: between layers, in every step, goes on with the tokens that the newest one looks at."""

from __future__ import annotations

from torch import Tensor

from btp.core.pruner import ScorePruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.signals import Signal, Signals


class LazyLLM(ScorePruner):
    """Ranks tokens by the attention of the newest one in the layer before the stage, averaged over heads.

    The engine does the rest: who is not seen in a step stays behind and may come back in a later one.

    Source: Fu et al. 2024, arXiv:2407.14057, equation 1. The paper's p_b counts layers that have run: its layer p_b
    supplies the scores for a stage in front of the next one. It drops what lies below the k-th percentile; how that is
    rounded is ours (docs/fidelity.md). No official code was released.
    """

    def check(self, schedule: Schedule) -> None:
        """Refuse stages without a decoder layer before them."""
        super().check(schedule)
        for i, stage in enumerate(schedule):
            if stage.site.tower != "llm" or stage.site.kind != "layer" or stage.site.layer < 1:
                raise ValueError(
                    f"schedule.{i}.site is {stage.site}, but pruner 'lazyllm' ranks by the attention of the decoder "
                    f"layer before it. Set schedule.{i}.site to llm.layer.1 or later."
                )

    def reads_states(self, stage: Stage) -> bool:
        """Attention says all."""
        return False

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """One row of attention probabilities of the layer before."""
        return (Signal("attention", stage.site.previous_layer, "last", "probs"),)

    def score(self, tokens: Tokens, signals: Signals, stage: Stage) -> Tensor:
        """[B, N] mean attention over heads."""
        return signals[self.needs(stage)[0]].mean((1, 2))
