"""VFlowOpt: in three steps, keeps what the vision tower's most attended patches look at; the first step recycles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from btp.core.check_settings import check_flag, check_one_of
from btp.core.keep import on_device
from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import MergePlan, Selection
from btp.core.signals import Signal, Signals
from btp.core.site import Site
from btp.core.topk import top_k
from btp.ops.attention_received import COMBINES, inflow_map, received_attention
from btp.ops.entropy import GRAYS, gray_levels, patch_entropy
from btp.ops.recycle import best_per_group, cell_numbers, direct_counts, marked, ranks, recycle
from btp.pruners.patch_attention import FEATURE


class VFlowOpt(Pruner):
    """Pruning by an importance map of the vision tower, the same at every stage; the question plays no part.

    The patches that receive more than t times the mean attention, in the block that the projector reads, are the
    picture's sinks. A patch is worth what the sinks give it, plus alpha times the softmax over the picture of its
    entropy. At `llm.input` the least important tokens are pruned, and each cell of m x m tokens gives one back: their
    mean, weighted by importance, in the place of the best of them. In front of decoder layers more tokens go, and
    none come back. `btp.runner.calibration.vflowopt` finds t, m, alpha and the counts for a budget.

    A tower's class token takes part in the softmax of its attention, and counts neither as row nor as column. Tokens
    off the grid (newlines) are worth more than all others. Several images, and the frames of a video, are pruned
    without recycling: each image for itself, all frames together.

    Args:
        t: threshold of a sink, times the mean. Where no patch passes, the one that receives most is the only sink.
        alpha: weight of the entropy; 0 asks for no pixels.
        m: side of a cell, in tokens, not rounded.
        rows: mean | sum, what the sinks give: the released code's mean, or the sum of the paper's equation 4.
        entropy: paper | official, see `btp.ops.entropy.gray_levels`.
        mean, std: with which the model's pictures are normalised; used where alpha is not 0 and entropy is paper.
        recycle: false prunes without giving anything back (the paper's ablation).
        recycle_several: several images and frames are recycled too, all tokens of a prompt ranked together. A picture
            and the mosaic of its tiles are one image of two regions, recycled always.
        exact: exactly the stage's count stays, recycled tokens included | false, as in the released code: room for
            int(T / m^2) of T tokens is made, and as many come back as cells are not empty. Adaptive then.

    Source: Yang et al. 2025, arXiv:2508.05211, and its released code, in which layer 8 attends in both directions
    where SDPA runs; here it does not.
    """

    def __init__(
        self,
        *,
        t: float,
        alpha: float,
        m: float,
        rows: str,
        entropy: str,
        mean: Sequence[float],
        std: Sequence[float],
        recycle: bool,
        recycle_several: bool,
        exact: bool,
    ) -> None:
        for key, value, known in (("rows", rows, COMBINES), ("entropy", entropy, GRAYS)):
            check_one_of(f"pruner.method.{key}", value, known)
        for key, value in (("recycle", recycle), ("recycle_several", recycle_several), ("exact", exact)):
            check_flag(f"pruner.method.{key}", value)
        for key, value, good in (("t", t, t >= 0), ("m", m, m >= 1), ("alpha", alpha, math.isfinite(alpha))):
            if not good:
                least = {"t": "a number from 0 on", "m": "a number of tokens from 1 on", "alpha": "a finite number"}
                raise ValueError(f"pruner.method.{key} is {value!r}. Write {least[key]}.")
        for key, values in (("mean", mean), ("std", std)):
            if len(values) != 3:
                raise ValueError(f"pruner.method.{key} is {list(values)!r}. Write one number per colour channel.")
        self.t, self.alpha, self.m, self.rows, self.entropy = t, alpha, m, rows, entropy
        self.mean, self.std = tuple(mean), tuple(std)
        self.recycle, self.recycle_several, self.exact = recycle, recycle_several, exact
        self.adaptive = recycle and not exact

    def check(self, schedule: Schedule) -> None:
        """Refuse stages outside the language model."""
        super().check(schedule)
        for i, stage in enumerate(schedule):
            if stage.withdraws_all:
                continue
            if stage.site.tower != "llm" or stage.site.kind == "cache":
                raise ValueError(
                    f"schedule.{i}.site is {stage.site}, but pruner 'vflowopt' prunes in front of the language model "
                    f"and between its layers. Set schedule.{i}.site to llm.input or llm.layer.N."
                )

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """Queries and keys of the block that the projector reads; the pictures where their entropy counts."""
        if stage.withdraws_all:
            return ()
        flow = (Signal("queries", FEATURE), Signal("keys", FEATURE, "all"))
        return (*flow, Signal("pixels", Site.parse("vision.output"))) if self.alpha else flow

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Keep the most important tokens; at the input, recycle the others."""
        worth = self.importance(tokens, signals, stage)
        score = worth.masked_fill(tokens.coord[..., 1] < 0, torch.inf)
        counts = tokens.keep_counts(stage)
        if stage.site.kind != "input":
            return Selection(top_k(score, counts, tokens.valid), scores=worth)
        alive = tokens.host_alive or tuple(tokens.valid.sum(1).tolist())
        stays, plan = self._first_stage(tokens, score, worth, counts, alive)
        found = tuple(stays.sum(1).tolist()) if self.adaptive else counts
        keep = marked(stays, max(found, default=0))
        merge, counts = plan if self.recycle and found != alive else None, found if self.adaptive else None
        return Selection(keep, merge, counts=counts, scores=worth)

    def importance(self, tokens: Tokens, signals: Signals, stage: Stage) -> Tensor:
        """[B, N] what each token is worth; 1 off the grid, arbitrary where padded."""
        queries, keys, *pixels = (signals[signal] for signal in self.needs(stage))
        real = (queries != 0).any(-1).any(1)  # zeros stand behind the patches of a smaller picture
        found = inflow_map(queries, keys, self.t, self.rows, real)
        if pixels:
            gray = gray_levels(pixels[0], self.entropy, self.mean, self.std)
            bits = patch_entropy(gray, queries.shape[2]).to(found)
            found = found + self.alpha * bits.masked_fill(~real, -torch.inf).softmax(1)
        assert tokens.picture is not None  # every engine tells where tokens come from
        assert tokens.slot is not None
        worth = found[tokens.picture.clamp(min=0), tokens.slot.clamp(min=0)]
        return worth.masked_fill(tokens.coord[..., 1] < 0, 1.0)

    def most_received(self, signals: Signals | Mapping[Signal, Tensor]) -> float:
        """The most attention that any patch receives, as a multiple of its picture's mean: a higher t changes nothing.

        Waits for the device; for searches.
        """
        queries, keys = (signals[signal] for signal in self.needs(Stage(Site.parse("llm.input"), 1.0))[:2])
        received = received_attention(queries, keys)
        return float((received.amax(1) / received.mean(1)).max())

    def _first_stage(
        self, tokens: Tokens, score: Tensor, worth: Tensor, counts: Sequence[int], alive: Sequence[int]
    ) -> tuple[Tensor, MergePlan]:
        """[B, N] bool, the tokens that stay, and where all go."""
        valid, device = tokens.valid, score.device
        image = tokens.image.masked_fill(~valid, 0)
        frame = tokens.coord[..., 0].masked_fill(~valid, 0).clamp(min=0)
        wanted = on_device(tuple(counts), device)
        index = torch.arange(valid.shape[1], device=device).expand_as(valid)
        apart = best_per_group(score, image, valid, wanted)
        plainly = MergePlan(index.masked_fill(~apart, -1), torch.ones_like(worth))
        if not self.recycle:
            return apart, plainly

        several = (image.amax(1) > 0) | (frame.amax(1) > 1)  # frames 0 and 1 alone: a picture and its tiles
        cell = cell_numbers(image * (1 << 16) + frame, tokens.coord[..., 1:], self.m, valid)
        rank = ranks(score, valid)
        room = [0 if k == n else int(n / self.m**2) for k, n in zip(counts, alive, strict=True)]
        direct = (wanted - on_device(room, device)).clamp(min=0)
        most = wanted if self.exact else torch.full_like(wanted, valid.shape[1])
        if self.exact:
            direct = direct_counts(rank, cell, valid, wanted, direct)
        off = (valid & (cell < 0)).sum(1)
        direct = torch.maximum(direct, torch.minimum(off, wanted))
        stays, plan = recycle(rank, cell, valid, worth, direct, most)
        if self.recycle_several:
            return stays, plan
        alone = ~several[:, None]
        target = torch.where(alone, plan.target, plainly.target)
        weight = torch.where(alone, plan.weight, plainly.weight)
        return torch.where(alone, stays, apart), MergePlan(target, weight)
