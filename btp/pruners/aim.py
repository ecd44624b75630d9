"""AIM: similar tokens merge in front of the language model, unimportant ones leave step by step inside it."""

from __future__ import annotations

import torch
from torch import Tensor

from btp.core.check_settings import check_number, check_one_of, check_whole
from btp.core.keep import on_device
from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import MergePlan, Selection
from btp.core.signals import Signal, Signals
from btp.core.site import Site
from btp.core.topk import lowest, top_k
from btp.ops.bipartite import merge_to
from btp.ops.frames import frames_apart, shared_out
from btp.ops.pagerank import walk_scores
from btp.pruners.patch_attention import joined_keys

ORDERS = ("raster", "official")
MEANS = ("official", "size")
HIDDEN = "hidden"


class AIM(Pruner):
    """Adaptive inference by token merging and pruning.

    At `vision.output` the most similar tokens of a picture merge, in steps that halve them at most. At `llm.input` so
    do those of a frame, for families that pool frames behind the tower: every frame of a video, or view of a picture,
    keeps the same share, and tokens off the grid (newlines) stay. At `llm.layer.N`
    those tokens stay at which a random walk along the attention of layer N - 1, over all heads and all rows, stands
    most. What a stage removes is gone: the walk of later layers runs over the tokens left. The released code hides
    them instead, and lets them start a walk: in that the two differ.

    Args:
        metric: what is compared in merging: hidden, the tokens' states (the paper for video) | vision.feature, the
            keys of the block whose output the projector reads | vision.layer.N, those of another block (released code
            for LLaVA-1.5: vision.layer.23, whose input are the tokens to be merged). Keys of all heads in one. At
            `llm.input` keys are those of the patches that were pooled, averaged or, on videos of LLaVA-OneVision,
            interpolated; where a family resizes or pools so that they cannot be told, take hidden.
        order: raster, tokens stay in their places | official, the tokens that could have gone but stay come first, by
            descending similarity.
        mean: official, each step takes the plain mean, whatever merged before | size, by the tokens each stands for.
        tau: temperature of the walk's attention, above 0.
        iterations: steps of the walk, 1 or more.
        damping: share of the walk that starts anew in every step, in [0, 1).

    Source: Zhong et al. 2025, arXiv:2412.03248, and its released code. Retention r_i of the paper's layer i acts from
    `llm.layer.(i+1)` on.
    """

    def __init__(self, *, metric: str, order: str, mean: str, tau: float, iterations: int, damping: float) -> None:
        for key, value, known in (("order", order, ORDERS), ("mean", mean, MEANS)):
            check_one_of(f"pruner.method.{key}", value, known)
        check_number("pruner.method.tau", tau, "a number above 0; the paper has 0.1", above=0)
        check_whole("pruner.method.iterations", iterations, "an integer of 1 or more")
        check_number("pruner.method.damping", damping, "a number in [0, 1); the paper has 0", 0, below=1)
        self.metric = None if metric == HIDDEN else _vision_layer(metric)
        self.order, self.mean = order, mean
        self.tau, self.iterations, self.damping = float(tau), iterations, float(damping)

    def check(self, schedule: Schedule) -> None:
        """Refuse stages at which it can neither merge nor look back, and a new order where positions stay."""
        super().check(schedule)
        for i, stage in enumerate(schedule):
            if stage.withdraws_all:
                continue
            site = stage.site
            if _merges(stage):
                if self.order == "official" and stage.positions != "renumber":
                    raise ValueError(
                        f"schedule.{i}.positions is {stage.positions}, but pruner.method.order=official gives the "
                        f"tokens a new order. Set schedule.{i}.positions to renumber, or pruner.method.order=raster."
                    )
            elif site.tower != "llm" or site.kind != "layer" or site.layer < 1:
                raise ValueError(
                    f"schedule.{i}.site is {site}, but pruner 'aim' merges at vision.output or llm.input and prunes by "
                    f"the attention of the decoder layer before a stage. Set schedule.{i}.site to vision.output, or to "
                    "llm.layer.1 or later."
                )

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """The metric in front of the language model; inside it queries and keys of the layer before."""
        if stage.withdraws_all:
            return ()
        if _merges(stage):
            return () if self.metric is None else (Signal("keys", self.metric),)
        before = stage.site.previous_layer
        return Signal("queries", before, "all"), Signal("keys", before, "all")

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Merge, or keep what the walk stands at."""
        counts = tokens.keep_counts(stage)
        if not _merges(stage):
            walk = self._walk(tokens, signals, stage)
            return Selection(top_k(walk, counts, tokens.valid), scores=walk)
        alive = tokens.host_alive or tuple(tokens.valid.sum(1).tolist())
        metric = tokens.hidden
        if self.metric is not None:
            metric = joined_keys(signals[self.needs(stage)[0]], tokens, stage)
        if stage.site.kind == "input":
            return self._merge_frames(tokens, metric, counts, alive)
        order = "raster" if self.order == "raster" else "similar"
        size = tokens.size if self.mean == "size" else None
        keep, plan = merge_to(metric, alive, counts, size, order)
        return Selection(keep, plan if counts != alive else None, ordered=order != "raster")

    def _merge_frames(
        self, tokens: Tokens, metric: Tensor, counts: tuple[int, ...], alive: tuple[int, ...]
    ) -> Selection:
        """Each frame by itself, as a row of its own."""
        on_grid = tokens.valid & (tokens.coord[..., 1] >= 0)
        apart = frames_apart(tokens.image, tokens.coord[..., 0], on_grid)
        placed = [sum(n for n, r in zip(apart.sizes, apart.rows, strict=True) if r == b) for b in range(len(alive))]
        off = [min(n - p, k) for n, p, k in zip(alive, placed, counts, strict=True)]  # they stay first
        wanted = shared_out([k - o for k, o in zip(counts, off, strict=True)], apart.rows, apart.sizes)
        order = "raster" if self.order == "raster" else "similar"
        row, index = apart.row[:, None], apart.index.clamp(min=0)
        size = tokens.size[row, index] if self.mean == "size" else None
        keep, plan = merge_to(metric[row, index], apart.sizes, wanted, size, order)

        every = torch.arange(on_grid.shape[1], device=on_grid.device).expand_as(on_grid)
        loose = tokens.valid & ~on_grid
        loose &= loose.cumsum(1) <= on_device(off, loose.device)[:, None]
        target = every.masked_fill(~loose, -1)
        target = apart.back(index.gather(1, plan.target.clamp(min=0)).masked_fill(plan.target < 0, -1), target)
        weight = apart.back(plan.weight, torch.ones_like(every, dtype=plan.weight.dtype))
        last = torch.iinfo(torch.int64).max
        rank = torch.arange(keep.shape[1], device=keep.device).expand_as(keep)
        spare = index.new_full((len(index), index.shape[1] + 1), last)  # padding writes behind the tokens
        ranks = spare.scatter(1, keep.masked_fill(keep < 0, index.shape[1]), rank)[:, :-1]
        if order == "raster":
            stays = apart.back(ranks < last, loose)
            place = every.masked_fill(~stays, last)
        else:
            frame = torch.arange(len(ranks), device=ranks.device)[:, None] * on_grid.shape[1]
            place = (every + len(ranks) * on_grid.shape[1]).masked_fill(~loose, last)  # behind all frames
            place = apart.back((frame + ranks.clamp(max=on_grid.shape[1])).masked_fill(ranks == last, last), place)
        found = place.argsort(dim=1, stable=True)[:, : max(counts)]
        found = found.masked_fill(place.gather(1, found) == last, -1)
        plan = MergePlan(target, weight) if counts != alive else None
        return Selection(found, plan, ordered=order != "raster")

    def _walk(self, tokens: Tokens, signals: Signals, stage: Stage) -> Tensor:
        """[B, N] log share of the walk."""
        queries, keys = self.needs(stage)
        scores = walk_scores(
            signals[queries],
            signals[keys],
            tau=self.tau,
            iterations=self.iterations,
            damping=self.damping,
            rows=signals.rows_valid(queries),
        )
        assert tokens.row is not None  # the engine fills it in inside of the language model
        return lowest(scores).gather(1, tokens.row.clamp(min=0))


def _merges(stage: Stage) -> bool:
    return str(stage.site) in ("vision.output", "llm.input")


def _vision_layer(text: str) -> Site:
    try:
        site = Site.parse(text)
    except ValueError:
        site = None
    if site is None or site.tower != "vision" or site.kind not in ("feature", "layer"):
        raise ValueError(f"pruner.method.metric is {text!r}. Write hidden, vision.feature or vision.layer.N.")
    return site
