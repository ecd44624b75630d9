"""DivPrune: the visual tokens that lie farthest apart, chosen once, in front of the language model."""

from __future__ import annotations

import torch

from btp.core.check_settings import check_one_of
from btp.core.keep import on_device
from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import Selection
from btp.core.signals import Signals
from btp.ops.farthest_point import DISTANCES, farthest_points

ORDERS = ("raster", "selection")


class DivPrune(Pruner):
    """Starts from the token whose nearest other one is farthest, and takes the farthest from all taken so far.

    One selection over all tokens of a prompt, whichever picture or frame they belong to; newline tokens compete
    too.

    Args:
        order: raster | selection, in which the kept tokens enter the language model. The published tables were
            made in the order of picking; the released code sorts.
        distance: cosine | l1 | l2 (the paper's table 4).

    Source: Alvar et al. 2025, arXiv:2503.02175, algorithm 1. Their code compares in the model's precision and picks
    tokens again once only copies are left; here distances are float32 and no token is kept twice. It rounds a share
    of the tokens to the nearest count, `keep` rounds down.
    """

    def __init__(self, *, order: str, distance: str) -> None:
        for key, value, known in (("order", order, ORDERS), ("distance", distance, DISTANCES)):
            check_one_of(f"pruner.method.{key}", value, known)
        self.order, self.distance = order, distance

    def check(self, schedule: Schedule) -> None:
        """Refuse the order of picking where tokens hold on to places of their own."""
        super().check(schedule)
        for i, stage in enumerate(schedule):
            if self.order != "selection" or stage.withdraws_all:
                continue
            if stage.site.tower != "llm" or stage.positions != "renumber":
                raise ValueError(
                    f"pruner.method.order is selection, but schedule.{i} stands at {stage.site} with positions: "
                    f"{stage.positions}, where tokens cannot change places. Set schedule.{i}.site to llm.input or "
                    f"llm.layer.N and schedule.{i}.positions to renumber, or pruner.method.order=raster."
                )

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Max-min distance, from scratch; a row that loses nothing stays in its order."""
        counts = tokens.keep_counts(stage)
        alive = tokens.host_alive or tuple(tokens.valid.sum(1).tolist())
        ordered = self.order == "selection" and counts != alive
        start = tokens.index[:, :0]
        keep = farthest_points(tokens.hidden, start, counts, tokens.valid, distance=self.distance, ordered=ordered)
        if ordered and any(k == n for k, n in zip(counts, alive, strict=True)):
            whole = on_device([k == n for k, n in zip(counts, alive, strict=True)], keep.device)
            place = torch.arange(keep.shape[1], device=keep.device)
            keep = torch.where(whole[:, None], place.masked_fill(keep < 0, -1), keep)
        return Selection(keep, ordered=ordered)
