"""EViT: keeps the patches that the class token attends to, and fuses the others into one."""

from __future__ import annotations

import torch
from torch import Tensor

from btp.core.check_settings import check_flag, check_one_of
from btp.core.keep import on_device
from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import MergePlan, Selection
from btp.core.signals import Signal, Signals
from btp.core.topk import marked, top_k

SCORES = {"fixed": "fixed", "cls": "cls", "received": "mean"}  # score -> rows of the attention signal


class EViT(Pruner):
    """Attentive tokens stay; the inattentive ones become one, their mean by attention.

    The fused token is one of those that a stage's keep counts. It stands at the place of the likeliest it was made of.

    Args:
        score: of the layer in front, mean over heads. fixed, what the rows that are no patches attend to: the class
            token, a detector's detection tokens, all rows where there are none | cls, the first of them alone |
            received, what a patch gets from all rows, which takes that layer's whole attention once more.
        fuse: false drops the inattentive ones without trace.

    Source: Liang et al. 2022, arXiv:2202.07800, which knows class tokens alone. The rest is ours.
    """

    def __init__(self, *, score: str, fuse: bool) -> None:
        check_one_of("pruner.method.score", score, SCORES)
        check_flag("pruner.method.fuse", fuse)
        self.rows, self.fuse = SCORES[score], fuse

    def check(self, schedule: Schedule) -> None:
        """Refuse stages that are not between layers of a vision tower."""
        super().check(schedule)
        for i, stage in enumerate(schedule):
            if not stage.withdraws_all and (stage.site.tower != "vision" or stage.site.kind != "layer"):
                raise ValueError(
                    f"schedule.{i}.site is {stage.site}, but pruner 'evit' cuts between layers of a vision tower. Set "
                    f"schedule.{i}.site to vision.layer.1 or later."
                )

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """Attention of the layer in front."""
        return () if stage.withdraws_all else (Signal("attention", stage.site.previous_layer, self.rows),)

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Keep the highest; the last of them takes in the others."""
        score = signals[self.needs(stage)[0]].mean(1)[:, 0]
        counts = tokens.keep_counts(stage)
        keep = top_k(score, counts, tokens.valid)
        alive = tokens.host_alive or tuple(tokens.valid.sum(1).tolist())
        if not self.fuse or counts == alive:
            return Selection(keep, scores=score)
        kept = marked(keep, score.shape[1])
        carrier = score.masked_fill(~kept, torch.inf).argmin(1, keepdim=True)
        index = torch.arange(score.shape[1], device=score.device).expand_as(score)
        stays = kept | (on_device(counts, score.device) == on_device(alive, score.device))[:, None]
        target = torch.where(stays, index, carrier).masked_fill(~tokens.valid, -1)
        return Selection(keep, MergePlan(target, score.clamp(min=torch.finfo(score.dtype).tiny)), scores=score)

    def explain(self, tokens: Tokens, signals: Signals, stage: Stage) -> dict[str, Tensor]:
        """The attention."""
        return {"attention": signals[self.needs(stage)[0]].mean(1)[:, 0]}
