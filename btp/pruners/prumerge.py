"""PruMerge: patches that stand out in the class token's attention take in those whose keys are most like theirs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from btp.core.check_settings import check_flag, check_number, check_one_of, check_whole
from btp.core.keep import on_device
from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import MergePlan, Selection
from btp.core.signals import Signal, Signals
from btp.core.site import Site
from btp.core.topk import marked, top_k
from btp.ops.outliers import outliers_above
from btp.pruners.patch_attention import SCORES, PatchAttention, check_sites, exact, joined_keys

COUNTS = ("exact", "outliers")
MERGES = ("official", "mean")
ORDERS = ("official", "raster")
JOINED = "joined"
TINY = 1e-30


class PruMerge(Pruner):
    """PruMerge, and with a share of spatial tokens PruMerge+.

    Patches with most attention from the class token stay; in PruMerge+ others at even distances stay beside them. Each
    takes in the `neighbours` patches whose keys are most like its own, kept ones too, weighted by their attention. What
    is left over flows into one token more, that stands at the end. A picture of which all stays is left as it is.

    Since a patch may flow into several, the trace shows only what becomes the last token, which stands in for the last
    patch that is not kept on its own.

    Args:
        score: cls, attention of the class token, averaged over heads | joined, as the released code computes it: one
            softmax over the products of all heads together | received, for towers without class token.
        layer: `vision.feature`, the layer that the projector reads, or `vision.layer.N`; released: vision.layer.23.
        count: exact, as many as the stage keeps | outliers, as many as lie above the third quartile of the attention by
            more than 1.5 times the distance of the quartiles, whatever the stage says: the paper's adaptive rule.
        spatial: share of the kept patches that stand at even distances, in [0, 1). 0 is PruMerge. With outliers the
            distance follows from their number as released, about three times as many patches.
        neighbours: patches that each takes in.
        merge: official, the weighted sum is added to the patch | mean, of the patch and what it takes in, by attention.
        extra: whether the patches that are not kept become one token more.
        order: official, by falling attention, then the spatial ones, then the extra one | raster.

    Source: Shang et al. 2024, arXiv:2403.15388, algorithm 1, and its released code.
    """

    def __init__(
        self,
        *,
        score: str,
        layer: str,
        count: str,
        spatial: float,
        neighbours: int,
        merge: str,
        extra: bool,
        order: str,
    ) -> None:
        known = {"score": (*SCORES, JOINED), "count": COUNTS, "merge": MERGES, "order": ORDERS}
        for key, value in {"score": score, "count": count, "merge": merge, "order": order}.items():
            check_one_of(f"pruner.method.{key}", value, known[key])
        check_number("pruner.method.spatial", spatial, "a share of the kept patches in [0, 1)", 0, below=1)
        check_whole("pruner.method.neighbours", neighbours, "a number of patches, 0 or more", least=0)
        check_flag("pruner.method.extra", extra)
        self.attention = None if score == JOINED else PatchAttention(score, Site.parse(layer))
        self.layer, self.spatial, self.neighbours = Site.parse(layer), float(spatial), neighbours
        self.merge, self.extra, self.order = merge, extra, order
        self.adaptive = count == "outliers"

    def check(self, schedule: Schedule) -> None:
        """Refuse stages behind the tower or inside it, and a new order where positions stay."""
        super().check(schedule)
        check_sites(schedule, self.name)
        for i, stage in enumerate(schedule):
            if self.order == "official" and stage.positions != "renumber" and not stage.withdraws_all:
                raise ValueError(
                    f"schedule.{i}.positions is {stage.positions}, but pruner.method.order=official gives the tokens a "
                    f"new order. Set schedule.{i}.positions to renumber, or pruner.method.order=raster."
                )
            if self.attention is None and stage.site.tower != "vision" and not stage.withdraws_all:
                raise ValueError(
                    f"schedule.{i}.site is {stage.site}, but pruner.method.score=joined is computed per picture. Set "
                    f"schedule.{i}.site to vision.output, or pruner.method.score=cls."
                )

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """Attention of the class token, and the keys of the same layer."""
        if stage.withdraws_all:
            return ()
        keys = Signal("keys", self.layer)
        if self.attention is not None:
            return (self.attention.signal, keys)
        return (Signal("queries", self.layer, "all"), Signal("keys", self.layer, "all"), keys)

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Choose, then let the others flow in."""
        scores = self._scores(tokens, signals, stage)
        alive = tokens.host_alive or tuple(tokens.valid.sum(1).tolist())
        if self.adaptive:
            chosen, spatial, counts = self._outliers(scores, tokens, alive)
        else:
            counts = tokens.keep_counts(stage)
            chosen, spatial = self._exactly(scores, tokens, counts, alive)
        own = chosen | spatial
        stands = _last(tokens.valid & ~own) & (own.sum(1, keepdim=True) < _column(counts, own))
        keep = self._in_order(scores, chosen, spatial, stands, counts)
        whole = _column([k == n for k, n in zip(counts, alive, strict=True)], own)
        place = torch.arange(keep.shape[1], device=keep.device).expand_as(keep).masked_fill(keep < 0, -1)
        keep = torch.where(whole, place, keep)
        if counts == alive:
            return Selection(keep, counts=self._own(counts), scores=scores)
        keys = joined_keys(signals[self.needs(stage)[-1]], tokens, stage)
        states = self._states(tokens, scores, keys, keep)
        gathers = stands.gather(1, keep.clamp(min=0)) & (keep >= 0)
        states = torch.where(gathers[..., None], self._gathered(tokens, scores, own), states)
        untouched = whole | (keep < 0)
        states = torch.where(untouched[..., None], _rows(exact(tokens.hidden), keep), states).to(tokens.hidden.dtype)
        index = torch.arange(own.shape[1], device=own.device).expand_as(own)
        last = index.masked_fill(~stands, -1).amax(1, keepdim=True)  # -1 where nothing gathers the rest
        plan = MergePlan(torch.where(own, index, last).masked_fill(~tokens.valid, -1), torch.ones_like(scores))
        ordered = self.order == "official"
        return Selection(keep, plan, states, self._own(counts), ordered, scores=scores)

    def _own(self, counts: tuple[int, ...]) -> tuple[int, ...] | None:
        return counts if self.adaptive else None

    def _scores(self, tokens: Tokens, signals: Signals, stage: Stage) -> Tensor:
        """[B, N] attention."""
        if self.attention is not None:
            return self.attention.of(tokens, signals, stage)
        queries, keys = (exact(signals[signal]) for signal in self.needs(stage)[:2])
        logits = (queries[:, :, :1] @ keys.mT).sum(1)[:, 0] / queries.shape[1] ** 0.5  # scaled by heads * d, not d
        return logits.softmax(-1)[:, keys.shape[2] - tokens.valid.shape[1] :]

    def _exactly(
        self, scores: Tensor, tokens: Tokens, counts: Sequence[int], alive: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """[B, N] patches by attention, and those at even distances among the rest."""
        split = [self._split(k, n) for k, n in zip(counts, alive, strict=True)]
        by_attention, even = [a for a, _ in split], [s for _, s in split]
        chosen = marked(top_k(scores, by_attention, tokens.valid), scores.shape[1])
        rest = tokens.valid & ~chosen
        steps = [max(1, (n - a) // max(s, 1)) for n, a, s in zip(alive, by_attention, even, strict=True)]
        rank, step = rest.cumsum(1) - 1, _column(steps, rest)
        return chosen, rest & (rank % step == 0) & (rank // step < _column(even, rest))

    def _split(self, k: int, n: int) -> tuple[int, int]:
        """Patches by attention and at even distances among k kept of n."""
        if k == n:
            return n, 0
        k -= int(self.extra and k > 1)
        spatial = int(k * self.spatial + 1e-6)
        return k - spatial, spatial

    def _outliers(self, scores: Tensor, tokens: Tokens, alive: Sequence[int]) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """The adaptive rule. Waits for the device once; a picture without outliers keeps its most attended patch."""
        chosen = outliers_above(scores, tokens.valid)
        best = scores.masked_fill(~tokens.valid, -torch.inf).argmax(1, keepdim=True)
        none = ~chosen.any(1, keepdim=True) & tokens.valid.any(1, keepdim=True)
        chosen = chosen | (none & torch.zeros_like(chosen).scatter(1, best, True))
        spatial = torch.zeros_like(chosen)
        if self.spatial:
            found = chosen.sum(1, keepdim=True).clamp(min=1)
            step = (tokens.valid.sum(1, keepdim=True) // found // 3).clamp(min=1)
            place = torch.arange(scores.shape[1], device=scores.device)
            spatial = tokens.valid & ~chosen & (place % step == 0)
        kept = (chosen | spatial).sum(1).tolist()
        return chosen, spatial, tuple(min(k + self.extra, n) for k, n in zip(kept, alive, strict=True))

    def _in_order(
        self, scores: Tensor, chosen: Tensor, spatial: Tensor, stands: Tensor, counts: Sequence[int]
    ) -> Tensor:
        """[B, max(counts)] the tokens that stay, -1 padded."""
        N = scores.shape[1]
        place = torch.arange(N, device=scores.device).expand_as(chosen)
        if self.order == "official":
            falling = scores.masked_fill(~chosen, -torch.inf).argsort(dim=1, descending=True, stable=True)
            rank = torch.zeros_like(falling).scatter(1, falling, place)
            place = torch.where(chosen, rank, torch.where(spatial, place + N, place + 2 * N))
        place = place.masked_fill(~(chosen | spatial | stands), 4 * N)
        keep = place.argsort(dim=1, stable=True)[:, : max(counts, default=0)]
        return keep.masked_fill(place.gather(1, keep) == 4 * N, -1)

    def _states(self, tokens: Tokens, scores: Tensor, keys: Tensor, keep: Tensor) -> Tensor:
        """[B, K, D] the kept patches with their neighbours' states."""
        hidden = exact(tokens.hidden)
        mine = _rows(hidden, keep)
        reach = min(self.neighbours, tokens.valid.shape[1] - 1)
        if not reach:
            return mine
        unit = normalize(keys, dim=-1)
        alike = _rows(unit, keep) @ unit.mT  # [B, K, N]
        itself = torch.zeros_like(alike, dtype=torch.bool).scatter(2, keep.clamp(min=0)[..., None], True)
        alike = alike.masked_fill(itself | ~tokens.valid[:, None], -torch.inf)
        found, near = alike.topk(reach, dim=2)
        weights = self._weights(scores, tokens)
        flows = weights[:, None].expand_as(alike).gather(2, near).masked_fill(found == -torch.inf, 0)
        table = torch.zeros_like(alike).scatter(2, near, flows)
        taken = table @ hidden.masked_fill(~tokens.valid[..., None], 0)
        if self.merge == "official":
            return mine + taken
        weight = weights.gather(1, keep.clamp(min=0))[..., None]
        return (weight * mine + taken) / (weight + table.sum(2, keepdim=True)).clamp(min=TINY)

    def _gathered(self, tokens: Tokens, scores: Tensor, own: Tensor) -> Tensor:
        """[B, 1, D] what is not kept, weighted by attention: its sum as released, or its mean."""
        weights = self._weights(scores, tokens).masked_fill(own, 0)
        found = weights[:, None] @ exact(tokens.hidden).masked_fill(~tokens.valid[..., None], 0)
        return found if self.merge == "official" else found / weights.sum(1)[:, None, None].clamp(min=TINY)

    def _weights(self, scores: Tensor, tokens: Tokens) -> Tensor:
        """[B, N] attention, 0 off the grid and where padded."""
        return scores.clamp(min=0).masked_fill(~tokens.valid, 0)


def _rows(x: Tensor, keep: Tensor) -> Tensor:
    return x.gather(1, keep.clamp(min=0)[..., None].expand(-1, -1, x.shape[2]))


def _last(rest: Tensor) -> Tensor:
    """[B, N] bool, the last of each row's `rest`."""
    return rest & (rest.flip(1).cumsum(1).flip(1) == 1)


def _column(numbers: Sequence, like: Tensor) -> Tensor:
    return on_device(tuple(numbers), like.device)[:, None]
