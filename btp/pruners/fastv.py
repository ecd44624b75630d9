"""FastV: one cut behind the second decoder layer, by what that layer's attention says."""

from __future__ import annotations

from torch import Tensor

from btp.core.check_settings import check_one_of
from btp.core.pruner import ScorePruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.signals import Signal, Signals
from btp.core.topk import lowest
from btp.pruners.random import Random

SCORES = ("probs", "logits")
QUERIES = ("last", "mean")


class FastV(ScorePruner):
    """Keeps the tokens that get most attention in the layer in front of the stage, averaged over heads.

    A stage that no decoder layer precedes (the paper's K = 0) keeps random tokens instead.

    Args:
        score: probs | logits. Probabilities are normalised over all keys, text too.
        query: last (the prompt's last token) | mean (over all tokens of the prompt; only with probs).
        seed: Seed of the random ones.

    Source: Chen et al. 2024, arXiv:2403.06764, and its released code, of which the variant is reproduced that
    withdraws tokens once, at prefill. The paper defines the score as the mean over all tokens, every released variant
    takes the last one. Its K is the number of layers in front of the cut, so that K = 2 is `llm.layer.2`; its R is
    the share that goes.
    """

    def __init__(self, *, score: str, query: str, seed: int) -> None:
        for key, value, known in (("score", score, SCORES), ("query", query, QUERIES)):
            check_one_of(f"pruner.method.{key}", value, known)
        if query == "mean" and score != "probs":
            raise ValueError(
                "pruner.method.query is mean with score logits, but only probabilities can be averaged over tokens. "
                "Set pruner.method.score to probs, or pruner.method.query to last."
            )
        self.form, self.query = score, query
        self.random = Random(seed=seed, salt="content")

    def check(self, schedule: Schedule) -> None:
        """Refuse stages outside the decoder."""
        super().check(schedule)
        for i, stage in enumerate(schedule):
            if stage.site.tower != "llm" or stage.site.kind == "cache":
                raise ValueError(
                    f"schedule.{i}.site is {stage.site}, but pruner 'fastv' ranks by the attention of a decoder layer. "
                    f"Set schedule.{i}.site to llm.layer.N, or to llm.input for random tokens."
                )

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """One row of attention of the layer before; nothing where there is none."""
        if stage.site.layer < 1:
            return ()
        return (Signal("attention", stage.site.previous_layer, self.query, self.form),)

    def score(self, tokens: Tokens, signals: Signals, stage: Stage) -> Tensor:
        """[B, N] mean attention over heads, or random numbers."""
        asked = self.needs(stage)
        return lowest(signals[asked[0]].mean((1, 2))) if asked else self.random.score(tokens, signals, stage)
