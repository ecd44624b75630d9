"""ATP-LLaVA, re-constructed: each stage learns, for the picture and question at hand, which score is enough to stay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from btp.core.check_settings import check_one_of, check_whole
from btp.core.pruner import Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import Selection
from btp.core.signals import Signal, Signals
from btp.core.trained import Masked, Soft, Trained
from btp.pruners.redundancy import COUNTS, Redundancy, Scores, at_least_one, choose, rules
from btp.pruners.trained_folder import read_weights

AVERAGES = ("layers", "stages")


class ATPLLaVA(Trained):
    """Keeps a token whose redundancy score is above one learned threshold, or that lies on a grid above another.

    A re-construction: neither the paper's body nor any code could be read, only what others report of it. What is
    open stands as settings.

    Args:
        inside: attention among visual tokens: open (softmax over them, without order) | causal | logits.
        norm: minmax (scores over the tokens at hand, from 0 to 1) | none.
        strides: Strides of the grids: every s-th row and column.
        sample: weight of a grid's density in its score.
        grid: cells a side of the map that the thresholds are read from; coordinates beyond it wrap around.
        hidden: width of the layer in between.
        start: thresholds of redundancy and grid that untrained modules give.
        temperature: steepness of the soft decisions at the start and at the end of a training.
        target: share of the tokens that the second loss aims at.
        average: what it holds against that: the mean over all layers | over stages.
        relative: divide that loss by the number of tokens.
        count: stage (exactly its keep: those on the grid, then by redundancy) | own (what the thresholds say).
        seed: Seed of untrained modules.
        weights: folder of trained modules; null leaves them untrained.
        digest: Digest of the weights, where it is known.

    Source: Ye et al. 2024, arXiv:2412.00447, sections 3.2 to 3.4, second hand. Its layers 4, 14 and 24 are read as
    counted from 1: `llm.layer.4` is behind four layers.
    """

    loss_names = ("depth", "target")

    def __init__(
        self,
        *,
        inside: str,
        norm: str,
        strides: Sequence[int],
        sample: float,
        grid: int,
        hidden: int,
        start: Sequence[float],
        temperature: Sequence[float],
        target: float,
        average: str,
        relative: bool,
        count: str,
        seed: int,
        weights: str | None = None,
        digest: str | None = None,
    ) -> None:
        super().__init__(seed)
        self.scored = Redundancy(inside, norm, strides, sample)
        for key, value, known in (("average", average, AVERAGES), ("count", count, COUNTS)):
            check_one_of(f"pruner.method.{key}", value, known)
        for key, value in (("grid", grid), ("hidden", hidden)):
            check_whole(f"pruner.method.{key}", value, "an int of 1 or more")
        if len(start) != 2 or not all(0 < x < 1 for x in start):
            raise ValueError(f"pruner.method.start is {list(start)!r}. Write two numbers between 0 and 1.")
        if len(temperature) != 2 or not all(x > 0 for x in temperature):
            raise ValueError(f"pruner.method.temperature is {list(temperature)!r}. Write two numbers above 0.")
        if not 0 < target <= 1:
            raise ValueError(f"pruner.method.target is {target!r}. Write a share above 0 and at most 1.")
        self.grid, self.hidden, self.start = grid, hidden, tuple(map(float, start))
        self.temperature, self.target = tuple(map(float, temperature)), float(target)
        self.average, self.relative, self.own = average, bool(relative), count == "own"
        self.adaptive = self.own
        if weights is not None:
            read_weights(self, weights, digest)

    def make_module(self, width: int) -> nn.Module:
        """A stage's thresholds; they do not depend on the width of the states."""
        return Thresholds(self.grid, self.hidden, self.start)

    def check(self, schedule: Schedule) -> None:
        """Refuse a stage without a layer before it."""
        super().check(schedule)
        for stage in schedule:
            self.needs(stage)

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """Queries and keys of the visual tokens, and the text's attention to them, in the layer before the stage."""
        return self.scored.needs(stage)

    def thresholds(self, scores: Scores, tokens: Tokens, stage: Stage) -> tuple[Tensor, Tensor]:
        """[B, 1] each, in (0, 1): of redundancy, and of grids."""
        module = self.module_of(stage, tokens)
        maps = torch.stack([scores.inside, scores.text], dim=1) * tokens.valid[:, None]  # [B, 2, N]
        found = module(on_grid(maps, tokens.coord, tokens.valid, self.grid).to(next(module.parameters())))
        return found[:, :1].to(scores.redundancy.dtype), found[:, 1:].to(scores.redundancy.dtype)

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """What passes a threshold, or the stage's number of tokens."""
        with torch.no_grad():
            return self._select(tokens, signals, stage)[0]

    def explain(self, tokens: Tokens, signals: Signals, stage: Stage) -> dict[str, Tensor]:
        """Both scores, and by which rule each token stayed."""
        with torch.no_grad():
            selection, scores, passed, on = self._select(tokens, signals, stage)
        reasons = rules(tokens, stage, selection, {"grid": on, "redundancy": passed})
        return {"score": scores.redundancy, "spatial": scores.spatial, **reasons}

    def _select(self, tokens: Tokens, signals: Signals, stage: Stage) -> tuple[Selection, Scores, Tensor, Tensor]:
        scores = self.scored(tokens, signals, stage)
        enough, dense = self.thresholds(scores, tokens, stage)
        passed, on = scores.redundancy > enough, scores.spatial > dense
        stays = at_least_one(passed | on, scores.redundancy, tokens.valid)
        return choose(tokens, stage, stays, on, scores.redundancy, self.own), scores, passed, on

    def soften(self, tokens: Tokens, signals: Signals, stage: Stage) -> Soft:
        """How far the better of the two scores is above its threshold, as a sigmoid."""
        scores = self.scored(tokens, signals, stage)
        enough, dense = self.thresholds(scores, tokens, stage)
        weight = soft_mask(scores.redundancy, scores.spatial, enough, dense, self.steepness)
        stays = (scores.redundancy > enough) | (scores.spatial > dense)
        return Soft(weight.to(tokens.hidden.dtype), at_least_one(stays, scores.redundancy, tokens.valid))

    def aim(self, tokens: Tokens, signals: Signals, stage: Stage) -> Tensor:
        """What passes one of the thresholds."""
        return self.soften(tokens, signals, stage).stays

    @property
    def steepness(self) -> float:
        """Steepness (inverse temperature) of the soft decisions, annealed over the training."""
        first, last = self.temperature
        return first * (last / first) ** self.progress

    def losses(self, stages: Sequence[Masked], num_layers: int) -> dict[str, Tensor]:
        """Tokens left behind each stage, the deeper the dearer; and how far their mean is from the target."""
        counts, total = [masked.count.float() for masked in stages], stages[0].total.float().clamp(min=1)
        layers = [masked.stage.site.first_layer for masked in stages]
        depth = sum(count / total * layer for count, layer in zip(counts, layers, strict=True))
        spans = [b - a for a, b in pairwise([*layers, num_layers])]
        if self.average == "layers":
            left = total * layers[0] + sum(count * span for count, span in zip(counts, spans, strict=True))
            mean = left / num_layers
        else:
            mean = sum(counts) / len(counts)
        missed = (mean - self.target * total).abs() / (total if self.relative else 1)
        return {"depth": depth.mean(), "target": missed.mean()}  # type: ignore[union-attr]


class Thresholds(nn.Module):
    """Two numbers between 0 and 1 from two maps of the picture.

    Args:
        grid: cells a side.
        hidden: width in between.
        start: what both are at first, about.
    """

    def __init__(self, grid: int, hidden: int, start: Sequence[float]) -> None:
        super().__init__()
        self.inside = nn.Linear(2 * grid * grid, hidden)
        self.heads = nn.Linear(hidden, 2)
        with torch.no_grad():
            self.heads.weight.normal_(std=0.1 * hidden**-0.5)
            self.heads.bias.copy_(torch.tensor([math.log(x / (1 - x)) for x in start]))

    def forward(self, maps: Tensor) -> Tensor:
        """[B, 2] from [B, 2, grid, grid]."""
        return self.heads(self.inside(maps.flatten(1)).relu()).sigmoid()


def soft_mask(redundancy: Tensor, spatial: Tensor, enough: Tensor, dense: Tensor, steepness: float) -> Tensor:
    """[B, N] the larger of two sigmoids: of a score's distance above its threshold, times the steepness."""
    of_redundancy = ((redundancy - enough) * steepness).sigmoid()
    return torch.maximum(of_redundancy, ((spatial - dense) * steepness).sigmoid())


def on_grid(values: Tensor, coord: Tensor, valid: Tensor, side: int) -> Tensor:
    """[B, C, side, side] the mean over the valid tokens of each cell, 0 where there are none.

    Args:
        values: [B, C, N].
        coord: [B, N, 3]; rows and columns beyond the side wrap around, tokens off the grid are left out.
        valid: [B, N] bool.
    """
    row, column = coord[..., 1], coord[..., 2]
    there = valid & (row >= 0) & (column >= 0)
    cell = ((row % side) * side + column % side).masked_fill(~there, side * side)[:, None]  # [B, 1, N]
    B, C, _ = values.shape
    total = values.new_zeros(B, C, side * side + 1).scatter_add(2, cell.expand_as(values), values)
    count = values.new_zeros(B, 1, side * side + 1).scatter_add(2, cell, there[:, None].to(values.dtype))
    return (total / count.clamp(min=1))[..., :-1].unflatten(-1, (side, side))
