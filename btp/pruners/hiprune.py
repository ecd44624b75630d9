"""HiPrune: what middle layers of the vision tower look at, what lies around it, and what the last layer looks at."""

from __future__ import annotations

import torch
from torch import Tensor

from btp.core.check_settings import check_number
from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import Selection
from btp.core.signals import Signal, Signals
from btp.core.site import Site
from btp.core.topk import marked, top_k
from btp.pruners.patch_attention import PatchAttention, check_sites

AROUND = 5  # an anchor and its four neighbours


class HiPrune(Pruner):
    """Anchor, buffer and register tokens.

    Anchors are the patches that receive most attention in the object layer, buffers the four patches around each on the
    picture's grid, and registers the patches that receive most in the layer whose output the projector reads, as many
    as are missing to the stage's count. Attention received is the mean over all rows, so that no class token is needed.

    Setting of a stage: `object`, the object layer, as vision.layer.8 or at a share of the depth, vision.layer.8/23.

    Args:
        alpha: share of the kept tokens that anchors and buffers may take, in [0, 1].

    Source: Liu et al. 2025, arXiv:2508.00553, and its released code, whose object layer 9 of 24 counts from 1.
    """

    stage_settings = frozenset({"object"})

    def __init__(self, *, alpha: float) -> None:
        check_number("pruner.method.alpha", alpha, "a share of the kept tokens in [0, 1]", 0, 1)
        self.alpha = float(alpha)

    def check(self, schedule: Schedule) -> None:
        """Refuse stages behind the first decoder layer or inside the tower, and those without an object layer."""
        super().check(schedule)
        check_sites(schedule, self.name)
        for i, stage in enumerate(schedule):
            if not stage.withdraws_all and self.alpha and not _is_layer(stage.settings.get("object")):
                raise ValueError(
                    f"schedule.{i}.object is {stage.settings.get('object')!r}. Write the layer of the vision tower "
                    "that looks at objects, as vision.layer.8, or vision.layer.8/23 for a share of the depth."
                )

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """Attention received in the object layer, and in the layer that the projector reads."""
        if stage.withdraws_all:
            return ()
        deep = PatchAttention("received").signal
        if not self.alpha:
            return (deep,)
        return deep, PatchAttention("received", Site.parse(stage.settings["object"])).signal

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Anchors, buffers, registers."""
        counts = tokens.keep_counts(stage)
        anchors, buffers, deep = self._parts(tokens, signals, stage, counts)
        share = deep / deep.amax(1, keepdim=True).clamp(min=torch.finfo(deep.dtype).tiny)  # in [0, 1]
        order = share + 2 * buffers.to(share) + 4 * anchors.to(share)
        return Selection(top_k(order, counts, tokens.valid), scores=deep)

    def explain(self, tokens: Tokens, signals: Signals, stage: Stage) -> dict[str, Tensor]:
        """Which of the three a kept token is."""
        counts = tokens.keep_counts(stage)
        anchors, buffers, _ = self._parts(tokens, signals, stage, counts)
        kept = marked(self.select(tokens, signals, stage).keep, tokens.valid.shape[1])
        return {
            "anchor": anchors & kept,
            "buffer": buffers & ~anchors & kept,
            "register": kept & ~anchors & ~buffers,
        }

    def _parts(
        self, tokens: Tokens, signals: Signals, stage: Stage, counts: tuple[int, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[B, N] anchors and their neighbours, and the attention received in the last layer."""
        deep = PatchAttention("received").of(tokens, signals, stage)
        deep = deep.clamp(min=0).masked_fill(~tokens.valid, 0)
        none = torch.zeros_like(tokens.valid)
        if not self.alpha:
            return none, none, deep
        middle = PatchAttention("received", Site.parse(stage.settings["object"])).of(tokens, signals, stage)
        picked = top_k(middle, [round(k * self.alpha / AROUND) for k in counts], tokens.valid)
        return marked(picked, tokens.valid.shape[1]), _beside(tokens, picked), deep


def _beside(tokens: Tokens, picked: Tensor) -> Tensor:
    """[B, N] bool, the neighbours of `picked` [B, A] in the same frame of the same picture."""
    grid = torch.cat([tokens.image[..., None], tokens.coord], dim=-1)  # [B, N, 4]
    at = grid.gather(1, picked.clamp(min=0)[..., None].expand(-1, -1, 4))
    apart = (grid[:, None] - at[:, :, None]).abs()  # [B, A, N, 4]
    near = (apart[..., :2].sum(-1) == 0) & (apart[..., 2:].sum(-1) == 1)
    on_grid = tokens.valid & (tokens.coord[..., 1] >= 0)
    return (near & (picked >= 0)[..., None]).any(1) & on_grid


def _is_layer(text: object) -> bool:
    try:
        site = Site.parse(text)  # type: ignore[arg-type]
    except ValueError:
        return False
    return (site.tower, site.kind) == ("vision", "layer")
