"""STA: drops tokens of a clip that repeat what earlier frames showed, and spares the active ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from btp.core.check_settings import check_flag, check_one_of, check_whole
from btp.core.keep import on_device
from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import Selection
from btp.core.signals import Signal, Signals
from btp.ops.temporal_accumulation import accumulate

ORDERS = ("official", "spatial")
FIRST = ("all", "kept")


class STA(Pruner):
    """Semantic-aware temporal accumulation.

    A stage cuts a clip into chunks of `span` frames and walks over them, forwards or `backwards`. Each token hands its
    score on to the tokens of the next chunk that are like it (keys of the layer in front, averaged over heads); what
    comes in, less the share by which a token is among the active ones of its chunk, is how redundant it is. Every chunk
    loses as many tokens, up to one. The first chunk loses those that are most alike among themselves.

    Args:
        order: official, the tokens of a chunk stand by falling score behind the stage, which changes what the next
            stages compare | spatial, they stay in their places.
        first_predecessors: all | kept; whether the dropped tokens of the first chunk hand their score on too.

    Source: Ding et al. 2023, arXiv:2308.04549, and its released code (stages behind blocks 0, d // 3 and 2 d // 3).
    """

    stage_settings = frozenset({"span", "backwards"})

    def __init__(self, *, order: str, first_predecessors: str) -> None:
        for key, value, known in (("order", order, ORDERS), ("first_predecessors", first_predecessors, FIRST)):
            check_one_of(f"pruner.method.{key}", value, known)
        self.order, self.first = order, first_predecessors

    def check(self, schedule: Schedule) -> None:
        """Refuse stages that are not between vision layers, spans below 1, and a new order where positions stay."""
        super().check(schedule)
        for i, stage in enumerate(schedule):
            span, backwards = stage.settings.get("span", 1), stage.settings.get("backwards", False)
            check_whole(f"schedule.{i}.span", span, "a number of frames, 1 or more")
            check_flag(f"schedule.{i}.backwards", backwards)
            if not stage.withdraws_all and (stage.site.tower != "vision" or stage.site.kind != "layer"):
                raise ValueError(
                    f"schedule.{i}.site is {stage.site}, but pruner 'sta' cuts between layers of a vision tower. Set "
                    f"schedule.{i}.site to vision.layer.1 or later."
                )
            if self.order == "official" and stage.positions != "renumber" and not stage.withdraws_all:
                raise ValueError(
                    f"schedule.{i}.positions is {stage.positions}, but pruner.method.order=official gives the tokens a "
                    f"new order. Set schedule.{i}.positions to renumber, or pruner.method.order=spatial."
                )

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """Keys of the layer in front of the stage."""
        return () if stage.withdraws_all else (Signal("keys", stage.site.previous_layer),)

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Keep as many of each chunk.

        Raises:
            ValueError: fewer tokens stay than there are chunks.
        """
        counts = tokens.keep_counts(stage)
        alive = tokens.host_alive or tuple(tokens.valid.sum(1).tolist())
        B, N = tokens.valid.shape
        if counts == alive:
            every = torch.arange(N, device=tokens.valid.device).expand(B, N)
            return Selection(every.masked_fill(~tokens.valid, -1))
        index, keep, orders, _ = self._walked(tokens, signals, stage, counts)
        rows = []
        for b, shares in enumerate(keep):
            kept = torch.cat([index[b, t][orders[t][b, :k]] for t, k in enumerate(shares)])
            kept = kept if self.order == "official" else kept.sort().values
            rows.append(torch.cat([kept, kept.new_full((max(counts) - len(kept),), -1)]))
        return Selection(torch.stack(rows), ordered=self.order == "official")

    def explain(self, tokens: Tokens, signals: Signals, stage: Stage) -> dict[str, Tensor]:
        """How little of a token was there before, activity counted: minus the score by which a chunk drops its highest;
        nothing of the chunk that is looked at first.
        """
        index, _, _, scores = self._walked(tokens, signals, stage, tokens.keep_counts(stage))
        (B, N), T = tokens.valid.shape, index.shape[1]
        found = tokens.hidden.new_full((B, N + 1), -torch.inf, dtype=torch.float32)  # padding goes behind the last one
        walk = range(T - 1, -1, -1) if stage.settings.get("backwards", False) else range(T)
        for t, score in zip(walk[1:], scores, strict=True):
            at = index[:, t].masked_fill(index[:, t] < 0, N)
            found = found.scatter(1, at, -score.float())
        return {"new": found[:, :N]}

    def _walked(
        self, tokens: Tokens, signals: Signals, stage: Stage, counts: Sequence[int]
    ) -> tuple[Tensor, list[list[int]], list[Tensor], list[Tensor]]:
        """[B, T, M] tokens of each chunk, how many each keeps, and what `accumulate` says of them."""
        chunk = tokens.coord[..., 0].div(stage.settings.get("span", 1), rounding_mode="floor")
        index, sizes = _chunks(chunk, tokens.valid)
        keep = [self._shares(n, k, stage) for n, k in zip(sizes, counts, strict=True)]
        safe, keys = index.clamp(min=0), signals[self.needs(stage)[0]].mean(1)
        backwards = stage.settings.get("backwards", False)
        states = _taken(tokens.hidden, safe)
        return index, keep, *accumulate(_taken(keys, safe), states, index >= 0, keep, backwards, self.first)

    def _shares(self, sizes: list[int], count: int, stage: Stage) -> list[int]:
        """Tokens that each chunk keeps: each loses as many, and none its last one."""
        there = sum(n > 0 for n in sizes)
        if count < there:
            raise ValueError(
                f"pruner 'sta' is to keep {count} tokens at {stage.site}, where a clip has {there} chunks of frames, "
                "each of which keeps one or more. Raise the budget, or the stage's span."
            )
        left, lost = list(sizes), sum(sizes) - count
        while lost:
            able = [t for t, n in enumerate(left) if n > 1]
            least = min(sizes[t] - left[t] for t in able)
            behind = [t for t in able if sizes[t] - left[t] == least]
            for t in behind[-lost:]:  # what does not divide evenly is lost by the last ones
                left[t] -= 1
            lost -= min(lost, len(behind))
        return left


def _chunks(chunk: Tensor, valid: Tensor) -> tuple[Tensor, list[list[int]]]:
    """[B, T, M] tokens of each chunk in their order, -1 padded at the end, and their numbers. Waits for the device."""
    B = len(chunk)
    T = int(chunk.masked_fill(~valid, 0).amax()) + 1
    table = [[[] for _ in range(T)] for _ in range(B)]
    for b, (numbers, real) in enumerate(zip(chunk.tolist(), valid.tolist(), strict=True)):
        for i, (number, there) in enumerate(zip(numbers, real, strict=True)):
            if there:
                table[b][number].append(i)
    sizes = [[len(members) for members in row] for row in table]
    most = max(map(max, sizes))
    padded = [[members + [-1] * (most - len(members)) for members in row] for row in table]
    return on_device(padded, chunk.device), sizes


def _taken(x: Tensor, index: Tensor) -> Tensor:
    """[B, T, M, D] of [B, N, D]."""
    B, T, M = index.shape
    return x.gather(1, index.view(B, T * M, 1).expand(-1, -1, x.shape[-1])).view(B, T, M, -1)
