"""V2Drop: in a few steps, drops the tokens that a decoder layer leaves as they were."""

from __future__ import annotations

import torch
from torch import Tensor

from btp.core.check_settings import check_one_of
from btp.core.pruner import ScorePruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.signals import Signal, Signals

MEASURES = ("l2", "l1", "cosine")


class V2Drop(ScorePruner):
    """Variation-aware dropping: a token is worth what the layer before the stage changed of it.

    No attention is asked for, and the question plays a part only by what it did to the tokens.

    Args:
        measure: l2 | l1, the length of the difference between a token behind and in front of the layer | cosine, one
            minus the cosine of the two.

    Source: Chen et al. 2025, arXiv:2509.01552, and its released code, which cuts in front of layers 3, 17 and 22,
    counted from 0, and compares what enters them with what entered the layer before.
    """

    def __init__(self, *, measure: str) -> None:
        check_one_of("pruner.method.measure", measure, MEASURES)
        self.measure = measure

    def check(self, schedule: Schedule) -> None:
        """Refuse stages that no decoder layer comes before."""
        super().check(schedule)
        for i, stage in enumerate(schedule):
            inside = stage.site.tower == "llm" and stage.site.kind == "layer" and stage.site.layer > 0
            if not inside and not stage.withdraws_all:
                raise ValueError(
                    f"schedule.{i}.site is {stage.site}, but pruner 'v2drop' ranks by what the decoder layer before "
                    f"the stage changed. Set schedule.{i}.site to llm.layer.1 or later."
                )

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """What entered and what left the layer before the cut."""
        return () if stage.withdraws_all else (Signal("update", stage.site.previous_layer, None, "layer"),)

    def score(self, tokens: Tokens, signals: Signals, stage: Stage) -> Tensor:
        """[B, N] variation, in float32 or better."""
        both = signals[self.needs(stage)[0]]
        entered, left = both.to(torch.promote_types(both.dtype, torch.float32)).unbind()
        if self.measure == "cosine":
            return 1 - torch.cosine_similarity(entered, left, dim=-1)
        return torch.linalg.vector_norm(left - entered, ord=int(self.measure[1]), dim=-1)
