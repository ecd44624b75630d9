"""FasterVLM: the patches that the vision tower's class token looks at, picture by picture."""

from __future__ import annotations

import torch
from torch import Tensor

from btp.core.check_settings import check_one_of
from btp.core.pruner import ScorePruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.signals import Signal, Signals
from btp.pruners.patch_attention import FEATURE, SCORES, check_sites

HEADS = ("mean", "max")


class FasterVLM(ScorePruner):
    """Keeps the patches with most attention from the class token, in the layer whose output the projector reads.

    At `vision.output` every picture, tile or frame keeps a count of its own, and only what it keeps is projected. At
    `llm.input` the pictures of a prompt share one count; all are projected, and tokens that are no patch (newlines)
    go first. Tiles of a picture stay in the order of the whole picture; newlines go at `vision.output` too, as the
    released code has none.

    Args:
        heads: mean | max, how the heads' attention becomes one score.
        score: cls | received. `received` is what a patch gets from all tokens on average: a stand-in for towers
            without a class token, which the authors did not try.

    Source: Zhang et al. 2024, arXiv:2412.01818v1, and its released code. Its tower hands out the attention of all
    layers, for which it gives up fused attention; here one row of one layer is computed beside the fused kernel.
    """

    def __init__(self, *, heads: str, score: str) -> None:
        for key, value, known in (("heads", heads, HEADS), ("score", score, tuple(SCORES))):
            check_one_of(f"pruner.method.{key}", value, known)
        self.heads, self.rows = heads, SCORES[score]

    def check(self, schedule: Schedule) -> None:
        """Refuse stages where a picture's patches are not whole."""
        super().check(schedule)
        check_sites(schedule, self.name)

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """One row of attention of the tower's last layer that is used."""
        return (Signal("attention", FEATURE, self.rows, "probs"),)

    def score(self, tokens: Tokens, signals: Signals, stage: Stage) -> Tensor:
        """[B, N] attention over heads."""
        seen = signals[self.needs(stage)[0]][:, :, 0]  # [P, H, N]
        scores = seen.mean(1) if self.heads == "mean" else seen.amax(1)
        if stage.site.tower == "vision":
            return scores
        assert tokens.picture is not None  # the engine fills them in wherever a vision signal is asked for
        assert tokens.slot is not None
        patch = (tokens.picture >= 0) & (tokens.slot >= 0)
        scores = scores[tokens.picture.clamp(min=0), tokens.slot.clamp(min=0)]
        return scores.masked_fill(~patch, torch.finfo(scores.dtype).min)
