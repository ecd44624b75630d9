"""AIM: similar tokens merge in front of the language model, unimportant ones leave step by step inside it."""

from __future__ import annotations

from numbers import Real

from torch import Tensor

from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import Selection
from btp.core.signals import Signal, Signals
from btp.core.site import Site
from btp.ops.bipartite import merge_to
from btp.ops.pick import top_k
from btp.ops.walk import walk_scores

ORDERS = ("raster", "official")
MEANS = ("official", "size")
HIDDEN = "hidden"


class AIM(Pruner):
    """Adaptive inference by token merging and pruning.

    At `vision.output` the most similar tokens of a picture merge, in steps that halve them at most. At `llm.layer.N`
    those tokens stay at which a random walk along the attention of layer N - 1, over all heads and all rows, stands
    most. What a stage removes is gone: the walk of later layers runs over the tokens left. The released code hides
    them instead, and lets them start a walk: in that the two differ.

    Args:
        metric: what is compared in merging: hidden, the tokens' states (the paper for video) | vision.feature, the
            keys of the block whose output the projector reads | vision.layer.N, those of another block (released code
            for LLaVA-1.5: vision.layer.23, whose input are the tokens to be merged). Keys of all heads in one.
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
            if value not in known:
                raise ValueError(f"pruner.method.{key} is {value!r}. Choose from: {', '.join(known)}.")
        if not _is_number(tau) or tau <= 0:
            raise ValueError(f"pruner.method.tau is {tau!r}. Write a number above 0; the paper has 0.1.")
        if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
            raise ValueError(f"pruner.method.iterations is {iterations!r}. Write an integer of 1 or more.")
        if not _is_number(damping) or not 0 <= damping < 1:
            raise ValueError(f"pruner.method.damping is {damping!r}. Write a number in [0, 1); the paper has 0.")
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
                        f"tokens a new order. Set schedule.{i}.positions to renumber, or pruner.method.order to raster."
                    )
            elif site.tower != "llm" or site.kind != "layer" or site.layer < 1:
                raise ValueError(
                    f"schedule.{i}.site is {site}, but pruner 'aim' merges at vision.output and prunes by the "
                    f"attention of the decoder layer before a stage. Set schedule.{i}.site to vision.output, or to "
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
            return Selection(top_k(self._walk(tokens, signals, stage), counts, tokens.valid))
        alive = tokens.host_alive or tuple(tokens.valid.sum(1).tolist())
        metric = tokens.hidden
        if self.metric is not None:
            metric = signals[self.needs(stage)[0]].transpose(1, 2).flatten(2)  # [B, N, H * d]
        order = "raster" if self.order == "raster" else "similar"
        size = tokens.size if self.mean == "size" else None
        keep, plan = merge_to(metric, alive, counts, size, order)
        return Selection(keep, plan if counts != alive else None, ordered=order != "raster")

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
        return scores.gather(1, tokens.row.clamp(min=0))


def _merges(stage: Stage) -> bool:
    return stage.site.tower == "vision" and stage.site.kind == "output"


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _vision_layer(text: str) -> Site:
    try:
        site = Site.parse(text)
    except ValueError:
        site = None
    if site is None or site.tower != "vision" or site.kind not in ("feature", "layer"):
        raise ValueError(f"pruner.method.metric is {text!r}. Write hidden, vision.feature or vision.layer.N.")
    return site
