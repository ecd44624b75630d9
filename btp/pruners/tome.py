"""ToMe: in every block of the vision tower, the most similar tokens merge."""

from __future__ import annotations

from torch import Tensor

from btp.core.check_settings import check_flag, check_one_of
from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import Selection
from btp.core.signals import Signal, Signals
from btp.ops.bipartite import merge_to

ORDERS = ("raster", "official")


class ToMe(Pruner):
    """Token merging by bipartite soft matching.

    At `vision.mlp.N` tokens are compared by the keys of block N, averaged over heads; at `vision.output`, and at
    `llm.input` for towers whose tokens are pooled, by their states. A token becomes the mean of all it stands for, and
    carries their number on. A step halves the tokens at most; a stage that keeps less takes several, between which the
    metric is merged too. The class token stays out.

    The pruner's `proportional_attention` tells the engine to add log size to the keys of the blocks behind a merge.

    Args:
        class_token: the tower has one, in front of the patches: in its blocks even and odd are counted with it, so
            that the first patch is a destination. At `vision.output` it is gone and not counted.
        order: raster, tokens stay in their places | official, the tokens that stay come in front of those they could
            merge into, without a class token by descending similarity. The next block counts even and odd in it.
        proportional_attention: a token that stands for n counts n times as a key. Off for MAE weights in the paper.

    Source: Bolya et al. 2023, arXiv:2210.09461, and its released code for a ViT. Several steps at the tower's output
    are what comparisons in language models call ToMe; no paper states them.
    """

    def __init__(self, *, class_token: bool, order: str, proportional_attention: bool) -> None:
        check_one_of("pruner.method.order", order, ORDERS)
        for key, value in (("class_token", class_token), ("proportional_attention", proportional_attention)):
            check_flag(f"pruner.method.{key}", value)
        self.class_token, self.order = class_token, order
        self.proportional_attention = proportional_attention

    def check(self, schedule: Schedule) -> None:
        """Refuse stages outside the vision tower, and a new order where positions stay."""
        super().check(schedule)
        for i, stage in enumerate(schedule):
            if stage.withdraws_all:
                continue
            inside = stage.site.tower == "vision" and stage.site.kind in ("mlp", "output")
            if not inside and str(stage.site) != "llm.input":
                raise ValueError(
                    f"schedule.{i}.site is {stage.site}, but pruner 'tome' merges inside the blocks of the vision "
                    f"tower or behind it. Set schedule.{i}.site to vision.mlp.N, vision.output or llm.input."
                )
            if self.order == "official" and stage.positions != "renumber":
                raise ValueError(
                    f"schedule.{i}.positions is {stage.positions}, but pruner.method.order=official gives the tokens "
                    f"a new order. Set schedule.{i}.positions to renumber, or pruner.method.order=raster."
                )

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """Inside a block its own keys; behind the tower nothing."""
        if stage.withdraws_all or stage.site.kind != "mlp":
            return ()
        return (Signal("keys", stage.site.previous_layer),)

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Merge until the stage's count is met."""
        counts = tokens.keep_counts(stage)
        alive = tokens.host_alive or tuple(tokens.valid.sum(1).tolist())
        lead = int(self.class_token and stage.site.kind == "mlp")
        order = self.order if self.order == "raster" else "halves" if lead else "similar"
        metric = self._metric(tokens, signals, stage)
        keep, plan = merge_to(metric, alive, counts, tokens.size, order, lead)
        return Selection(keep, plan if counts != alive else None, ordered=order != "raster")

    def _metric(self, tokens: Tokens, signals: Signals, stage: Stage) -> Tensor:
        declared = self.needs(stage)
        return signals[declared[0]].float().mean(1) if declared else tokens.hidden
