"""SparseVLM: ranks visual tokens by text raters' attention; part of those pruned are recycled as cluster means."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from btp.core.check_settings import check_number, check_one_of, check_whole
from btp.core.keep import check_keep
from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import MergePlan, Selection
from btp.core.signals import Signal, Signals
from btp.core.site import Site
from btp.core.topk import top_k
from btp.ops.density_peaks import density_peaks
from btp.ops.text_raters import block_rank, bounded, choose_raters, loudest_heads, position_kernel, text_scores
from btp.pruners.text_attention import TextAttention

SCORES = ("attention", "kernel")
COUNTS = ("table", "rank")
START = Signal("hidden", Site.parse("llm.input"), "start")
TEXT = Signal("hidden", Site.parse("llm.input"), "text")


class SparseVLM(Pruner):
    """SparseVLM v1, v1.5 and v2.0 ("SparseVLM+").

    Raters are the text tokens behind the first image whose mean share of the image tokens, in the embeddings that
    enter the decoder, is above the mean. A stage ranks by their attention in the layer before it. With recycling, of
    the R tokens that go, the best int(recycle R) + 1 are clustered, and int(of these / per_cluster) + 1 means stay,
    standing behind the kept tokens. A stage's keep is the total that stays, means included: as many tokens are kept as
    they are as make up that total. A total below the number of means for R = N is means alone.

    Which program is which:
        v1: count rank, four stages, recycling, score attention, positions renumber.
        v1.5: count table, three stages, recycling, score attention, positions renumber.
        v2.0: count table, three stages, recycle 0, score kernel, 14 heads, positions original.

    Args:
        score: attention | kernel, which divides it by what rotary positions alone contribute (`position_kernel`).
        guard: least magnitude of that divisor, >= 0; 0 is the released code, where it passes through zero.
        heads: heads with the largest sum over raters and visual tokens, chosen behind the division; an int, a share
            of the layer's heads as a float, or null for all.
        recycle: share of the removed tokens that is clustered, in [0, 1]; 0 drops them all.
        per_cluster: clustered tokens per mean, 1 or more.
        count: table (the stage's keep) | rank: of N tokens, min(int(rank scale + bias), N - 1) are kept as they are,
            at least one, with the matrix rank of the raters' attention; all of them where that is N. A stage's keep is
            no more than an aim then, but 1.0 still keeps all.
        scale, bias: Constants of `count: rank`.

    Source: Zhang et al. 2024, arXiv:2410.04417, and the released code (91fb6d9 for v1, 26a5f48). Its tables list tokens
    kept as they are and cut the output of a layer: "layer 2" there is `llm.layer.3` here. It adds noise to the
    clustering; here ties go to the lowest index. Where no score is above the mean it fails; here all text rates.
    """

    def __init__(
        self,
        *,
        score: str,
        guard: float,
        heads: int | float | None,
        recycle: float,
        per_cluster: int,
        count: str,
        scale: float,
        bias: float,
    ) -> None:
        for key, value, known in (("score", score, SCORES), ("count", count, COUNTS)):
            check_one_of(f"pruner.method.{key}", value, known)
        check_number("pruner.method.guard", guard, "a number of 0 or more", 0)
        check_number("pruner.method.recycle", recycle, "a number in [0, 1]", 0, 1)
        check_number("pruner.method.scale", scale, "a number")
        check_number("pruner.method.bias", bias, "a number")
        check_whole("pruner.method.per_cluster", per_cluster, "an int of 1 or more")
        if heads is not None:
            check_keep(heads, "pruner.method.heads")
            if isinstance(heads, str) or not heads:
                raise ValueError(
                    f"pruner.method.heads is {heads!r}. Write an int, a share as a float, or null for all."
                )
        if guard and score != "kernel":
            raise ValueError(
                f"pruner.method.guard is {guard}, but only score: kernel divides by anything. Set guard to 0."
            )
        self.score, self.guard, self.heads = score, float(guard), heads
        self.recycle, self.per_cluster = float(recycle), per_cluster
        self.count, self.scale, self.bias = count, float(scale), float(bias)
        self.adaptive = count == "rank"

    def check(self, schedule: Schedule) -> None:
        """Refuse a stage without a decoder layer before it, and original positions for tokens that change places."""
        super().check(schedule)
        before = TextAttention("probs", "mean")
        for i, stage in enumerate(schedule):
            if stage.withdraws_all:
                continue
            before.check(i, stage, self.name)
            if self.recycle and stage.positions != "renumber":
                raise ValueError(
                    f"schedule.{i}.positions is {stage.positions}, but pruner {self.name!r} puts cluster means behind "
                    f"the kept tokens, where no original position fits. Set schedule.{i}.positions to renumber, or "
                    "pruner.method.recycle=0."
                )

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """What raters are chosen from, the text's attention before the stage, and for `kernel` its positions."""
        return (START, TEXT, _attention(stage), *(_rotary(stage) if self.score == "kernel" else ()))

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Keep what the raters look at; merge part of the rest."""
        alive = tokens.host_alive or tuple(tokens.valid.sum(1).tolist())
        block, raters = self._block(tokens, signals, stage)
        relation = block.sum(1) / raters.sum(1, keepdim=True).clamp(min=1)  # [B, N]
        if self.adaptive:
            ranks = block_rank(block, raters, tokens.valid).tolist()
            everything = isinstance(stage.keep, float) and stage.keep == 1
            direct = [a if everything else self._by_rank(rank, a) for rank, a in zip(ranks, alive, strict=True)]
            totals = tuple(k + self._means(a - k) for k, a in zip(direct, alive, strict=True))
        else:
            totals = tokens.keep_counts(stage)
            direct = [self._kept_as_is(a, total) for a, total in zip(alive, totals, strict=True)]
        counts = totals if self.adaptive else None
        means = [total - k for total, k in zip(totals, direct, strict=True)]
        if not any(means):
            return Selection(top_k(relation, totals, tokens.valid), counts=counts, scores=relation)
        keep, merge = self._recycled(tokens, relation, direct, means, alive)
        return Selection(keep, merge, counts=counts, ordered=True, scores=relation)

    def _block(self, tokens: Tokens, signals: Signals, stage: Stage) -> tuple[Tensor, Tensor]:
        """[B, T, N] what each text token gives each visual one, 0 but for raters; and [B, T] who is one."""
        rated = text_scores(signals[START], signals.rows_valid(START), signals[TEXT], signals.rows_valid(TEXT))
        raters = choose_raters(rated, signals.rows_valid(TEXT))
        scores = signals[_attention(stage)].float()
        if self.score == "kernel":
            visual, text = (signals[rotary] for rotary in _rotary(stage))
            scores = scores / bounded(position_kernel(text, visual), self.guard)[:, None]
        counted = raters[:, :, None] & tokens.valid[:, None]
        if self.heads is None:
            return scores.mean(1).masked_fill(~counted, 0), raters
        return loudest_heads(scores.masked_fill(~counted[:, None], 0), self.heads).mean(1), raters

    def _by_rank(self, rank: int, alive: int) -> int:
        """Tokens kept as they are, by the rule of the first release."""
        return alive if rank == alive else max(1, min(int(rank * self.scale + self.bias), alive - 1))

    def _clustered(self, removed: int) -> int:
        """How many of the removed tokens are clustered."""
        return min(int(self.recycle * removed) + 1, removed) if self.recycle else 0

    def _means(self, removed: int) -> int:
        """How many cluster means they become."""
        clustered = self._clustered(removed)
        return min(clustered // self.per_cluster + 1, clustered)

    def _kept_as_is(self, alive: int, total: int) -> int:
        """The largest k with k + means of the others = total; 0 where the means alone are more than the total."""
        k = total
        while k > 0 and k + self._means(alive - k) > total:
            k -= 1
        return k

    def _recycled(
        self, tokens: Tokens, relation: Tensor, direct: Sequence[int], means: Sequence[int], alive: Sequence[int]
    ) -> tuple[Tensor, MergePlan]:
        """Kept tokens ascending, then the centres of the clusters, and where the clustered tokens go."""
        B, N = relation.shape
        device = relation.device
        number = [self._clustered(a - k) for k, a in zip(direct, alive, strict=True)]
        kept = top_k(relation, direct, tokens.valid)
        upper = top_k(relation, [k + m for k, m in zip(direct, number, strict=True)], tokens.valid)
        near = _members(upper, N) & ~_members(kept, N)
        candidate = top_k(near.long(), number)  # [B, M], ascending
        place = candidate.clamp(min=0)
        x = tokens.hidden[torch.arange(B, device=device)[:, None], place]
        centre, group = density_peaks(x, means, candidate >= 0)
        centres = place.gather(1, centre.clamp(min=0)).masked_fill(centre < 0, -1)  # [B, C] into N
        keep = torch.cat([kept, centres], dim=1)
        order = (keep < 0).long().argsort(dim=1, stable=True)
        widest = max(k + c for k, c in zip(direct, means, strict=True))
        itself = torch.arange(N, device=device).expand(B, N)
        target = torch.where(_members(kept, N), itself, -1)
        target = torch.cat([target, target[:, :1]], dim=1)  # padding writes behind the tokens
        target = target.scatter(1, candidate.masked_fill(candidate < 0, N), centres.gather(1, group))[:, :N]
        return keep.gather(1, order[:, :widest]), MergePlan(target, torch.ones_like(relation))


def _attention(stage: Stage) -> Signal:
    return Signal("attention", stage.site.previous_layer, "text", "probs")


def _rotary(stage: Stage) -> tuple[Signal, Signal]:
    layer = stage.site.previous_layer
    return Signal("rotary", layer, None), Signal("rotary", layer, "text")


def _members(index: Tensor, n: int) -> Tensor:
    """[B, n] bool: which of n entries are named; -1 names none."""
    named = torch.zeros(index.shape[0], n + 1, dtype=torch.bool, device=index.device)
    return named.scatter(1, index.masked_fill(index < 0, n), True)[:, :n]
