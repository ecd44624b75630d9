"""HoliTom: what does not move in a window of frames becomes one token, and what is left is thinned out by frame."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from btp.core.check_settings import check_number, check_one_of, check_whole
from btp.core.keep import on_device
from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import MergePlan, Selection
from btp.core.signals import Signal, Signals
from btp.core.topk import top_k
from btp.ops.anchors import into_anchors
from btp.ops.apportion import apportion, best_of_groups
from btp.ops.frames_before import before, distance_before, frame_numbers
from btp.pruners.patch_attention import PatchAttention

SALIENCES = ("received", "none")


class HoliTom(Pruner):
    """Holistic token merging, outside the language model and inside.

    At `llm.input` a video is cut into windows of frames, so that as many tokens as possible stand still: a place stands
    still in a window where each of its tokens has a cosine above `threshold` to the one before. These become one token,
    their mean, in the first frame. The count is shared in proportion among what stands still in each window and what
    moves in each frame; of both the most attended stay, and of what stands still the others flow into those. Where less
    is left than the stage keeps, less stays. Tokens off the grid (newlines) stay.

    At `llm.layer.N` the tokens with most attention from the last token of the prompt stay, and the others flow into the
    most alike of them.

    Args:
        threshold: cosine above which a token stands still.
        window: longest window, in frames.
        salience: received, the mean attention from all tokens of the tower's last layer | none, where the tower's
            signals cannot be seen; then those stay that are least like their frame's mean.

    Source: Shao et al. 2025, arXiv:2505.21334, section 3, and its released code.
    """

    adaptive = True

    def __init__(self, *, threshold: float, window: int, salience: str) -> None:
        check_number("pruner.method.threshold", threshold, "a cosine, in [-1, 1]", -1, 1)
        check_whole("pruner.method.window", window, "a number of frames, 1 or more")
        check_one_of("pruner.method.salience", salience, SALIENCES)
        self.threshold, self.window = float(threshold), window
        self.attention = PatchAttention("received") if salience == "received" else None

    def check(self, schedule: Schedule) -> None:
        """Refuse stages other than the decoder's input and those behind a decoder layer."""
        super().check(schedule)
        for i, stage in enumerate(schedule):
            inside = stage.site.tower == "llm" and stage.site.kind == "layer" and stage.site.layer > 0
            if not inside and str(stage.site) != "llm.input" and not stage.withdraws_all:
                raise ValueError(
                    f"schedule.{i}.site is {stage.site}, but pruner 'holitom' merges where frames enter the language "
                    f"model, and behind its layers. Set schedule.{i}.site to llm.input, or to llm.layer.1 or later."
                )

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """Attention received in the tower; inside the language model that of the last token."""
        if stage.withdraws_all:
            return ()
        if stage.site.kind == "layer":
            return (Signal("attention", stage.site.previous_layer, "last", "probs"),)
        return () if self.attention is None else (self.attention.signal,)

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Merge along time, then keep the most attended; the host learns the windows, and so waits for the device."""
        counts = tokens.keep_counts(stage)
        alive = tokens.host_alive or tuple(tokens.valid.sum(1).tolist())
        if stage.site.kind == "layer":
            return self._inside(tokens, signals, stage, counts, alive)
        if counts == alive:
            return Selection(top_k(tokens.valid.float(), counts, tokens.valid), counts=counts)
        frame, _ = frame_numbers(tokens.image, tokens.coord, tokens.valid)
        back = before(tokens.image, tokens.coord, tokens.valid)
        distance = distance_before(tokens.hidden, back)
        still = (distance < 1 - self.threshold) & (back >= 0)
        window, start = self._windows(frame, still)
        first, rests = _stand_still(frame, still, back, start)
        heads = tokens.valid & (first == torch.arange(first.shape[1], device=first.device))
        scores = self._worth(tokens, signals, stage, frame)

        part = torch.where(rests, frame.shape[1] + window, frame).clamp(min=0)  # still of a window, moving of a frame
        asked = on_device(counts, part.device)
        loose, free = heads & (frame < 0), heads & (frame >= 0)
        loose &= loose.cumsum(1) <= asked[:, None]
        room = torch.zeros(len(part), 2 * part.shape[1], dtype=torch.long, device=part.device)
        room = room.scatter_add(1, part, free.long())
        quota = apportion(room, torch.minimum(asked - loose.sum(1), room.sum(1)), room)
        stays = loose | best_of_groups(scores, part, quota, free)
        kept = tuple(stays.sum(1).tolist())
        plan = self._plan(tokens, stays, rests, first, part)
        return Selection(top_k(stays.float(), kept, tokens.valid), plan, counts=kept, scores=scores)

    def _worth(self, tokens: Tokens, signals: Signals, stage: Stage, frame: Tensor) -> Tensor:
        """[B, N] what ranks the tokens of a frame."""
        if self.attention is not None:
            return self.attention.of(tokens, signals, stage)
        x = tokens.hidden.to(torch.promote_types(tokens.hidden.dtype, torch.float32))
        x = x.masked_fill((frame < 0)[..., None], 0)
        into = frame.clamp(min=0)[..., None].expand_as(x)
        sums = torch.zeros_like(x).scatter_add(1, into, x).gather(1, into)  # the mean at another scale
        return 1 - torch.cosine_similarity(x, sums, dim=-1)

    def _windows(self, frame: Tensor, still: Tensor) -> tuple[Tensor, Tensor]:
        """[B, N] window of each token, and the number of its first frame; of no meaning off the grid."""
        N = frame.shape[1]
        last = (frame.amax(1) + 1).tolist()
        starts = []
        for row in range(len(frame)):
            moves = _moves(frame[row], still[row], last[row])
            starts.append(_best_windows(moves, self.window))
        table = torch.zeros(2, len(frame), N + 1, dtype=torch.long)
        for row, found in enumerate(starts):
            table[0, row, : len(found)] = torch.tensor([sorted(set(found)).index(s) for s in found], dtype=torch.long)
            table[1, row, : len(found)] = torch.tensor(found, dtype=torch.long)
        window, start = table.to(frame.device)
        return window.gather(1, frame.clamp(min=0)), start.gather(1, frame.clamp(min=0))

    def _plan(self, tokens: Tokens, stays: Tensor, rests: Tensor, first: Tensor, part: Tensor) -> MergePlan:
        """Where all flow: along time into the first of a place that stands still, whose others flow into those kept."""
        B, N = first.shape
        index = torch.arange(N, device=first.device).expand(B, N)
        heads = tokens.valid & (first == index)
        plan = into_anchors(tokens.hidden, stays & rests, heads & rests & ~stays, part, 0.5)
        dropped = heads & ~stays & ~rests  # of what moves the others leave
        through = plan.target.masked_fill(dropped, -1)
        target = through.gather(1, first).masked_fill(~tokens.valid, -1)
        return MergePlan(target, torch.ones(B, N, device=first.device, dtype=plan.weight.dtype))

    def _inside(
        self, tokens: Tokens, signals: Signals, stage: Stage, counts: tuple[int, ...], alive: tuple[int, ...]
    ) -> Selection:
        """Keep the most attended, and let the others flow into the most alike of these."""
        scores = signals[self.needs(stage)[0]].float().mean((1, 2))
        keep = top_k(scores, counts, tokens.valid)
        if counts == alive:
            return Selection(keep, counts=counts, scores=scores)
        stays = torch.zeros_like(tokens.valid).scatter(1, keep.clamp(min=0), keep >= 0)
        plan = into_anchors(tokens.hidden, stays, tokens.valid & ~stays, torch.zeros_like(tokens.index), 0.5)
        ones = torch.ones_like(plan.weight)
        return Selection(keep, MergePlan(plan.target, ones), counts=counts, scores=scores)


def _stand_still(frame: Tensor, still: Tensor, back: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """[B, N] first token of each one's place in its window where the place stands still, else itself; [B, N] bool.

    A place stands still where all of its tokens but the first do: chains of tokens before are followed by doubling.
    """
    index = torch.arange(frame.shape[1], device=frame.device).expand_as(frame)
    linked = still & (frame > start)
    first = torch.where(linked, back.clamp(min=0), index)
    reach = linked.long()
    for _ in range(max(frame.shape[1] - 1, 1).bit_length()):
        reach = reach + reach.gather(1, first)
        first = first.gather(1, first)
    steps = frame - start  # links that a token needs to reach the first frame
    arrives = (frame >= 0) & (reach == steps)
    ends = torch.zeros_like(frame).scatter_reduce(1, torch.where(arrives, first, index), frame, "amax")
    length = torch.zeros_like(frame).scatter_reduce(1, start.clamp(min=0), frame, "amax")  # last frame, by the first
    last = length.gather(1, start.clamp(min=0))
    whole = arrives & (ends.gather(1, first) == last) & (last > start)
    return torch.where(whole, first, index), whole


def _moves(frame: Tensor, still: Tensor, frames: int) -> list[list[int]]:
    """Tokens that stand still from frame s to frame e, for s <= e: how many places a window would spare in a frame."""
    if frames < 1:
        return []
    tokens = [frame == f for f in range(frames)]
    sizes = [int(t.sum()) for t in tokens]
    table = [[0] * frames for _ in range(frames)]
    if len(set(sizes)) > 1:
        return table  # frames of unequal size have no common places
    rows = torch.stack([still[t] for t in tokens])  # [F, P]
    for s in range(frames - 1):
        table[s][s + 1 :] = rows[s + 1 :].long().cumprod(0).sum(1).tolist()
    return table


def _best_windows(moves: Sequence[Sequence[int]], longest: int) -> list[int]:
    """First frame of each frame's window, so that the windows spare as many tokens as possible."""
    best, begin = [0], []
    for end in range(len(moves)):
        options = [(best[end], end)]
        options += [(best[s] + moves[s][end] * (end - s), s) for s in range(max(0, end - longest + 1), end)]
        most = max(worth for worth, _ in options)
        begin.append(next(s for worth, s in options if worth == most))
        best.append(most)
    found, end = [0] * len(moves), len(moves) - 1
    while end >= 0:
        found[begin[end] : end + 1] = [begin[end]] * (end + 1 - begin[end])
        end = begin[end] - 1
    return found
