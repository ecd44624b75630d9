"""FastVID: frames become segments; of each, salient tokens stay and dense ones take in the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from btp.core.check_settings import check_number, check_one_of, check_whole
from btp.core.keep import on_device
from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import Selection
from btp.core.signals import Signal, Signals
from btp.core.topk import marked, top_k
from btp.ops.anchors import into_anchors
from btp.ops.density_peaks import density_peaks
from btp.ops.frames import Apart, frames_apart, shared_out
from btp.pruners.evs import check_input
from btp.pruners.patch_attention import PatchAttention

SALIENCES = ("received", "none")


class FastVID(Pruner):
    """Dynamic density pruning.

    A video is cut into segments where frames change: at the `segments` - 1 least alike neighbours, and wherever two are
    less alike than `threshold`. Every frame has the same share of the count. Of it, a part are the tokens with most
    attention in the tower; the rest of a segment's count goes to every `every`-th of its frames, in which density peaks
    become anchors. All other tokens of the segment flow into the anchor most like them. Tokens off the grid stay.

    Args:
        segments: segments of a video at least, 1 or more.
        threshold: cosine of two frames' means below which a segment ends.
        salient: share of the count that attention chooses, in [0, 1].
        salience: received, the mean attention from all tokens of the tower's last layer | none, where the tower's
            signals cannot be seen; then anchors get the whole count.
        every: frames from one with anchors to the next.
        neighbours: nearest tokens that make the density.
        share: Share of an anchor in what it becomes.

    Source: Shen et al. 2025, arXiv:2503.11187, section 3, and its released code.
    """

    def __init__(
        self,
        *,
        segments: int,
        threshold: float,
        salient: float,
        salience: str,
        every: int,
        neighbours: int,
        share: float,
    ) -> None:
        check_one_of("pruner.method.salience", salience, SALIENCES)
        for key, number in (("segments", segments), ("every", every), ("neighbours", neighbours)):
            check_whole(f"pruner.method.{key}", number, "an integer of 1 or more")
        for key, part in (("salient", salient), ("share", share)):
            check_number(f"pruner.method.{key}", part, "a share in [0, 1]", 0, 1)
        self.segments, self.threshold, self.every = segments, float(threshold), every
        self.salient = float(salient) if salience == "received" else 0.0
        self.neighbours, self.share = neighbours, float(share)
        self.attention = PatchAttention("received")

    def check(self, schedule: Schedule) -> None:
        """Refuse stages other than the decoder's input."""
        super().check(schedule)
        check_input(schedule, self.name)

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """Attention received in the tower, unless nothing is chosen by it."""
        return (self.attention.signal,) if self.salient and not stage.withdraws_all else ()

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Salient tokens and anchors. Waits for the device once, for the segments."""
        counts = tokens.keep_counts(stage)
        alive = tokens.host_alive or tuple(tokens.valid.sum(1).tolist())
        if counts == alive:
            return Selection(top_k(tokens.valid.float(), counts, tokens.valid))
        on_grid = tokens.valid & (tokens.coord[..., 1] >= 0)
        apart = frames_apart(tokens.image, tokens.coord[..., 0], on_grid)
        placed = [sum(n for n, r in zip(apart.sizes, apart.rows, strict=True) if r == b) for b in range(len(alive))]
        loose = [min(n - p, k) for n, p, k in zip(alive, placed, counts, strict=True)]
        quota = shared_out([k - o for k, o in zip(counts, loose, strict=True)], apart.rows, apart.sizes)
        x = _framewise(tokens.hidden, apart)  # [G, n, D]
        real = apart.index >= 0
        salient = [int(self.salient * k + 1e-6) for k in quota]
        chosen = torch.zeros_like(real)
        scores = None
        if self.salient:
            scores = self.attention.of(tokens, signals, stage)
            chosen = marked(top_k(_framewise(scores[..., None], apart)[..., 0], salient, real), real.shape[1])
        segment = self._segments(tokens, apart, x, real)
        room = [n - s for n, s in zip(apart.sizes, salient, strict=True)]
        wanted = [k - s for k, s in zip(quota, salient, strict=True)]
        anchors = self._peaks(x, real & ~chosen, self._shared(segment, wanted, room))

        none = torch.zeros_like(tokens.valid)
        anchor, own = apart.back(anchors, none), apart.back(chosen, none)
        number = on_device(segment, x.device)[:, None].expand_as(real)
        group = apart.back(number, torch.full_like(tokens.index, -1))
        kept_loose = tokens.valid & ~on_grid
        kept_loose &= kept_loose.cumsum(1) <= on_device(loose, x.device)[:, None]
        stays = anchor | own | kept_loose
        plan = into_anchors(tokens.hidden, anchor, on_grid & ~stays, group, self.share)
        plan = type(plan)(plan.target.masked_fill(~tokens.valid | (~on_grid & ~stays), -1), plan.weight, plan.combine)
        whole = on_device([k == n for k, n in zip(counts, alive, strict=True)], x.device)[:, None]
        return Selection(top_k((stays | (whole & tokens.valid)).float(), counts, tokens.valid), plan, scores=scores)

    def _segments(self, tokens: Tokens, apart: Apart, x: Tensor, real: Tensor) -> list[int]:
        """Which segment each frame is in, counted over all rows; a segment never has two videos."""
        mean = x.sum(1) / real.sum(1, keepdim=True).clamp(min=1)
        alike = torch.cosine_similarity(mean[:-1], mean[1:], dim=-1)
        image = tokens.image[apart.row, apart.index[:, 0].clamp(min=0)]
        alike, number = torch.stack([alike.double(), image[1:].double()]).tolist()
        first = image[:1].tolist()
        videos = list(zip(apart.rows, [*first, *number], strict=True))
        ends = {g for g in range(len(alike)) if videos[g] != videos[g + 1] or alike[g] < self.threshold}
        for video in dict.fromkeys(videos):
            inside = [g for g in range(len(alike)) if videos[g] == videos[g + 1] == video]
            ends |= set(sorted(inside, key=lambda g: alike[g])[: self.segments - 1])
        found, at = [], 0
        for g in range(len(videos)):
            found.append(at)
            at += g in ends
        return found

    def _shared(self, segment: Sequence[int], wanted: Sequence[int], room: Sequence[int]) -> list[int]:
        """Anchors of each frame: a segment's count, even among every `every`-th frame, then wherever there is room."""
        found = [0] * len(segment)
        for one in dict.fromkeys(segment):
            frames = [g for g, s in enumerate(segment) if s == one]
            left, first = sum(wanted[g] for g in frames), frames[:: self.every]
            for n, g in enumerate(first):
                found[g] = min(left * (n + 1) // len(first) - left * n // len(first), room[g])
            left -= sum(found[g] for g in first)
            for g in [*first, *(g for g in frames if g not in first)]:
                more = min(left, room[g] - found[g])
                found[g], left = found[g] + more, left - more
        return found

    def _peaks(self, x: Tensor, free: Tensor, counts: Sequence[int]) -> Tensor:
        """[G, n] bool, the density peaks among the free tokens of each frame."""
        order = (~free).long().argsort(dim=1, stable=True)
        ahead = x.gather(1, order[..., None].expand_as(x))
        centres, _ = density_peaks(ahead, counts, free.gather(1, order), neighbours=self.neighbours)
        found = order.gather(1, centres.clamp(min=0)).masked_fill(centres < 0, -1)
        return marked(found, x.shape[1])


def _framewise(x: Tensor, apart: Apart) -> Tensor:
    """[G, n, ...] the tokens of each frame; 0 where padded."""
    found = x[apart.row[:, None], apart.index.clamp(min=0)]
    found = found.to(torch.promote_types(found.dtype, torch.float32))
    return found.masked_fill((apart.index < 0)[..., None], 0)
