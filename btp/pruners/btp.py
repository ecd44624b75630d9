"""Balanced Token Pruning: diversity early, for the layers to come; attention late, for the layer at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor

from btp.core.check_settings import check_number, check_one_of
from btp.core.keep import keep_count, on_device
from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import Selection
from btp.core.signals import Signal, Signals
from btp.core.topk import marked, top_k, unscored
from btp.ops.farthest_point import farthest_points
from btp.ops.grid_spread import DISTANCES, spatial_seeds
from btp.ops.nearest_chosen import distances_in_turn
from btp.ops.rebalance import rebalanced_top
from btp.ops.union import joined
from btp.pruners.text_attention import TextAttention

SPLITS = ("half", "keep")


class BTP(Pruner):
    """Balanced Token Pruning.

    Of the k tokens a stage keeps, the first floor(balance * k) are those the text looks at most, early tokens
    before late ones. Where nothing was withdrawn before, tokens spread over the image grid follow, and the
    rest are the farthest points of the hidden states from all chosen so far. One stage hands its tokens to
    the next, so the kept sets are nested.

    Settings of a stage:
        balance: in [0, 1], the paper's lambda; needed wherever something stays.
        over, seed: in place of the method's; `seed` on the first stage only.
        scratch: in [0, 1], 0 where it is not set. floor(scratch * k) tokens more are kept, the farthest points of the
            hidden states that a search from no token at all finds.
        surplus: 1 or more, 1 where it is not set. Attention chooses floor(surplus * floor(balance * k)) tokens.
    Together scratch and balance * surplus are at most 1.

    Args:
        score: logits | probs, which form of the attention ranks. The published numbers come from logits.
        source: last | mean | similar, which text token looks, see `TextAttention`.
        over: candidates per token chosen by attention, >= 1 (the paper's c).
        split: half | keep. Early tokens are the first half of those alive (paper), or the first k (code).
        seed: tokens spread over the grid, as a share of the original ones, in [0, 1]; what exceeds k is left
            out.
        distance: manhattan | euclidean, between places of the grid.

    Source: Li et al. 2025, arXiv:2505.22038, and its released code. Layers count from 1 there: a stage at the
    paper's layer 4 is `llm.layer.3` here. The paper gives no share for the seed; its code takes 144 of 576. The code
    has rounds of farthest points from scratch, which the paper has not (`scratch`), and for Qwen2.5-VL keeps all
    candidates of the first stage without re-balancing them (`surplus`, with `over` 1). It keeps a token twice that two
    rules choose at stage 2, and more than k where its parts exceed k; here tokens are distinct, and k of them.
    """

    stage_settings = frozenset({"balance", "over", "scratch", "seed", "surplus"})

    def __init__(self, *, score: str, source: str, over: float, split: str, seed: float, distance: str) -> None:
        self.attention = TextAttention(score, source)
        self.over = _number("pruner.method.over", over, 1, None)
        self.seed = _number("pruner.method.seed", seed, 0, 1)
        for key, value, known in (("split", split, SPLITS), ("distance", distance, DISTANCES)):
            check_one_of(f"pruner.method.{key}", value, known)
        self.split, self.distance = split, distance

    def check(self, schedule: Schedule) -> None:
        """Refuse a balance that is missing, out of range or has no attention to use, and a late seed."""
        super().check(schedule)
        for i, stage in enumerate(schedule):
            if stage.withdraws_all:
                if stage.settings:
                    raise ValueError(
                        f"schedule.{i}.{next(iter(stage.settings))} has no effect: keep is 0, so nothing is "
                        "left to choose. Remove it."
                    )
                continue
            if "balance" not in stage.settings:
                raise ValueError(
                    f"schedule.{i}.balance is missing. Pruner 'btp' needs one wherever something stays: the "
                    "share of the kept tokens that attention chooses, as 0.6."
                )
            balance = _number(f"schedule.{i}.balance", stage.settings["balance"], 0, 1)
            _number(f"schedule.{i}.over", stage.settings.get("over", 1), 1, None)
            _number(f"schedule.{i}.seed", stage.settings.get("seed", 0), 0, 1)
            scratch = _number(f"schedule.{i}.scratch", stage.settings.get("scratch", 0), 0, 1)
            surplus = _number(f"schedule.{i}.surplus", stage.settings.get("surplus", 1), 1, None)
            if scratch + balance * surplus > 1 + 1e-6:
                raise ValueError(
                    f"schedule.{i}.scratch is {scratch:g} and attention chooses {balance * surplus:g} of what stays "
                    f"(balance {balance:g} times surplus {surplus:g}), together more than all of it. Lower "
                    f"schedule.{i}.scratch or schedule.{i}.balance."
                )
            if surplus > 1 and not balance:
                raise ValueError(
                    f"schedule.{i}.surplus is {surplus:g}, but balance is 0, so that attention chooses nothing. Remove "
                    "it."
                )
            if stage.site.tower != "llm" or stage.site.kind == "cache":
                raise ValueError(
                    f"schedule.{i}.site is {stage.site}, but pruner 'btp' works between decoder layers. "
                    f"Set schedule.{i}.site to llm.input or llm.layer.N."
                )
            if balance > 0:
                self.attention.check(i, stage, "btp", f", or schedule.{i}.balance to 0")
            if i and "seed" in stage.settings:
                raise ValueError(
                    f"schedule.{i}.seed is set, but only the first stage sees the whole grid. Move it to "
                    "schedule.0.seed."
                )

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """The text's attention, unless diversity chooses everything."""
        return self.attention.needs(stage) if stage.settings.get("balance", 0) > 0 else ()

    def needs_grid(self, stage: Stage) -> bool:
        """Where tokens are to be spread over the grid."""
        return float(stage.settings.get("seed", self.seed)) > 0

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Attention, then farthest points from scratch, then the grid, then the farthest from all of these."""
        first = self._first(tokens, signals, stage)
        if tuple(first.sure) == first.counts:  # nothing is left for diversity
            keep = _ascending(first.chosen, tokens.valid.shape[1], first.counts)
        else:
            keep = farthest_points(tokens.hidden, first.chosen, first.counts, tokens.padding, first.sure)
        return Selection(keep, scores=first.scores)

    def explain(self, tokens: Tokens, signals: Signals, stage: Stage) -> dict[str, Tensor]:
        """Which of the five rules chose each token, and what each goes by.

        Rebalancing is why a token stays that attention alone, as a plain top-k, would have left out. The parts of the
        score: the attention; the place in the line of candidates, 1 for the first; the cosine distance to the nearest
        token chosen before, of those left out to the nearest chosen at all.
        """
        first = self._first(tokens, signals, stage)
        N, said = tokens.valid.shape[1], {}
        attended = marked(first.attended, N)
        if first.scores is not None:
            line = rebalanced_top(first.scores, first.candidates, *first.limits)
            top = marked(top_k(first.scores, first.by_attention, tokens.valid), N)
            said |= {"attention score": unscored(first.scores), "candidates": _places(line, first.candidates, N)}
            said |= {"attention": attended & top, "rebalancing": attended & ~top}
        chosen, alone = marked(first.chosen, N), marked(first.scratch, N) & ~attended
        for name, mine in (("farthest from scratch", alone), ("spatial seed", chosen & ~attended & ~alone)):
            if mine.any():
                said[name] = mine
        if tuple(first.sure) != first.counts:
            order = farthest_points(tokens.hidden, first.chosen, first.counts, tokens.valid, first.sure, ordered=True)
            said["distance"] = distances_in_turn(tokens.hidden, order, tokens.valid).masked_fill(chosen, -torch.inf)
            said["diversity"] = marked(order, N) & ~chosen
        return said

    def _first(self, tokens: Tokens, signals: Signals, stage: Stage) -> _First:
        """What is chosen before diversity fills up."""
        counts = tokens.keep_counts(stage)
        alive = tokens.host_alive or tuple(tokens.valid.sum(1).tolist())
        by_attention = tuple(_by_attention(stage, k) for k in counts)
        scores, candidates, limits = None, [0] * len(counts), None
        nothing = torch.empty(len(counts), 0, dtype=torch.long, device=tokens.hidden.device)
        attended = scratch = nothing
        if any(by_attention):
            scores = self.attention.of(tokens, signals, stage)
            over = float(stage.settings.get("over", self.over))
            candidates = [min(int(over * n + 1e-6), a) for n, a in zip(by_attention, alive, strict=True)]
            split = counts if self.split == "keep" else [(a + 1) // 2 for a in alive]  # index < N / 2
            ragged = min(alive) < tokens.valid.shape[1]
            limits = candidates, split, tokens.valid if ragged else None
            attended = rebalanced_top(scores, by_attention, *limits)
        chosen, sure = attended, list(by_attention)
        apart = [keep_count(float(stage.settings.get("scratch", 0)), k) for k in counts]
        if any(apart):
            scratch = farthest_points(tokens.hidden, nothing, apart, tokens.valid)
            chosen, sure = joined(chosen, scratch, counts, sure, apart)
        seeds = self._seeds(tokens, stage, counts, alive)
        if any(seeds):
            chosen, sure = joined(chosen, _padded(seeds, chosen.device), counts, sure, [len(row) for row in seeds])
        return _First(counts, by_attention, scores, candidates, limits, attended, scratch, chosen, sure)

    def _seeds(
        self, tokens: Tokens, stage: Stage, counts: Sequence[int], alive: Sequence[int]
    ) -> list[tuple[int, ...]]:
        """Places spread over the grid, for rows of which all tokens are alive and some will go."""
        share = float(stage.settings.get("seed", self.seed))
        total = tokens.host_total or tuple(tokens.total.tolist())
        numbers = [
            keep_count(share, n) if n == a and k < a else 0 for n, a, k in zip(total, alive, counts, strict=True)
        ]
        if not any(numbers):
            return [()] * len(numbers)
        coord, image = tokens.host_grid or (tokens.coord, tokens.image)
        if tokens.host_grid is None and min(alive) < coord.shape[1]:
            coord = coord.masked_fill(~tokens.valid[..., None], -1)
        return spatial_seeds(coord, image, numbers, self.distance)


@dataclass(frozen=True)
class _First:
    """What a stage of B rows chose before diversity.

    Attributes:
        counts: tokens that each row keeps.
        by_attention: how many of them attention chooses.
        scores: [B, N] attention; None where it chooses none.
        candidates: Candidates for attention, per row.
        limits: candidates, split and valid, as `rebalanced_top` takes them; None likewise.
        attended: [B, M] those that attention chose.
        scratch: [B, M'] the farthest points from scratch.
        chosen: [B, M''] both and the seeds behind them, each once.
        sure: distinct ones that each row has for certain.
    """

    counts: tuple[int, ...]
    by_attention: tuple[int, ...]
    scores: Tensor | None
    candidates: list[int]
    limits: Any
    attended: Tensor
    scratch: Tensor
    chosen: Tensor
    sure: list[int]


def _places(line: Tensor, candidates: Sequence[int], n: int) -> Tensor:
    """[B, n] falling from 1 along each row's line of `candidates` [B, C]; -inf for who does not stand in it."""
    place = torch.arange(line.shape[1], device=line.device)
    length = on_device(tuple(candidates), line.device).clamp(min=1)[:, None]
    found = torch.full((len(line), n + 1), -torch.inf, device=line.device)
    return found.scatter(1, line.masked_fill(line < 0, n), 1 - place / length)[:, :n]


def _ascending(chosen: Tensor, n: int, counts: Sequence[int]) -> Tensor:
    """[B, max(counts)] the indices of `chosen` [B, M] in order, all below n, -1 behind those of a row."""
    if chosen.shape[1] == min(counts):  # as many in every row
        return chosen.sort(dim=1).values
    found = chosen.masked_fill(chosen < 0, n).sort(dim=1).values[:, : max(counts)]
    return found.masked_fill(found == n, -1)


def _by_attention(stage: Stage, k: int) -> int:
    """How many of k tokens attention chooses: a share of k, and a multiple of that, each rounded down."""
    return int(keep_count(float(stage.settings["balance"]), k) * float(stage.settings.get("surplus", 1)) + 1e-6)


def _padded(rows: Sequence[tuple[int, ...]], device: torch.device) -> Tensor:
    """[B, longest] the rows, padded with -1 at the end."""
    width = max(map(len, rows))
    return on_device([[*row, *[-1] * (width - len(row))] for row in rows], device).view(len(rows), width)


def _number(key: str, value: object, low: float, high: float | None) -> float:
    wanted = f"a number of {low} or more" if high is None else f"a number in [{low}, {high}]"
    return check_number(key, value, wanted, low, inf if high is None else high)
