"""Events of a video: where one ends, which matter, and how finely each frame's features are pooled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

POOLS = ("bilinear", "average", "max")
KEY_STRIDES, OTHER_STRIDES = (2, 4), (4, 8)  # of a key frame and of any other, in a key event and in any other


@dataclass(frozen=True)
class Events:
    """The events of one video.

    Attributes:
        spans: first and behind the last frame of each; they follow each other and cover all frames.
        key: whether each is a key event.
        key_frames: numbers of the frames that match the text best, a few of each event.
        match: Match of each event with the text, the best of its frames.
    """

    spans: tuple[tuple[int, int], ...]
    key: tuple[bool, ...]
    key_frames: frozenset[int]
    match: tuple[float, ...]

    def strides(self) -> list[int]:
        """The stride by which each frame is pooled."""
        return [
            (KEY_STRIDES if key else OTHER_STRIDES)[frame not in self.key_frames]
            for (first, end), key in zip(self.spans, self.key, strict=True)
            for frame in range(first, end)
        ]


def neighbours(frames: Tensor) -> Tensor:
    """[T - 1] cosines of the mean features of frames that follow each other, in float64.

    Args:
        frames: [T, P, D] patch features.
    """
    mean = frames.double().mean(1)
    return F.cosine_similarity(mean[:-1], mean[1:], dim=-1)


def cut_events(similarity: Sequence[float], events: int) -> tuple[tuple[int, int], ...]:
    """Cut behind the frames that are least like the next one; of equal ones behind the earlier.

    Args:
        similarity: Similarity of each frame to the next, T - 1 numbers.
        events: most of them; a video of fewer frames has as many as frames.

    Returns:
        First and behind the last frame of each event.
    """
    cuts = sorted(range(len(similarity)), key=lambda i: similarity[i])[: events - 1]
    ends = [i + 1 for i in sorted(cuts)] + [len(similarity) + 1]
    return tuple(zip([0, *ends[:-1]], ends, strict=True))


def judge_events(spans: Sequence[tuple[int, int]], match: Sequence[float], key_events: int, key_frames: int) -> Events:
    """Find key events and key frames by how well frames match the text; of equal ones the first.

    Args:
        spans: Spans of the events.
        match: Match of each frame with the text.
        key_events: events that are key events.
        key_frames: frames of each event that are key frames; an event of fewer has them all.
    """
    best = [max(match[first:end]) for first, end in spans]
    order = sorted(range(len(spans)), key=lambda i: -best[i])[:key_events]
    chosen = set()
    for first, end in spans:
        chosen |= set(sorted(range(first, end), key=lambda i: -match[i])[:key_frames])
    return Events(tuple(spans), tuple(i in order for i in range(len(spans))), frozenset(chosen), tuple(best))


def pooled_side(side: int, stride: int, mode: str) -> int:
    """Tokens along a side of a frame pooled by a stride: rounded up where interpolated, down where averaged."""
    return -(-side // stride) if mode == "bilinear" else max(side // stride, 1)


def pool_frame(frame: Tensor, stride: int, mode: str) -> Tensor:
    """[side', side', D] of a frame [side, side, D].

    Args:
        stride: 2 | 4 | 8; a frame smaller than that becomes one token.
        mode: bilinear (four neighbours of each new token, not antialiased, as LLaVA-OneVision pools) | average | max.
    """
    x = frame.permute(2, 0, 1)[None]
    size = pooled_side(len(frame), stride, mode)
    if mode == "bilinear":
        x = F.interpolate(x, size=(size, size), mode="bilinear")
    else:
        window = min(stride, len(frame))
        x = (F.avg_pool2d if mode == "average" else F.max_pool2d)(x, window, window)
    return x[0].permute(1, 2, 0)


def event_keeps(lengths: Sequence[int], key: Sequence[bool], ratio: float, others: str) -> list[int]:
    """Tokens that each event keeps: a share of a key event's, half of that or none of another's; one at least.

    Args:
        lengths: tokens of each event now.
        key: whether each is a key event.
        ratio: the share, in (0, 1].
        others: half | none.
    """
    share = {"half": 0.5, "none": 0.0}[others]
    return [
        min(n, max(1, ceil(ratio * n * (1 if mine else share)))) if n and (mine or share) else 0
        for n, mine in zip(lengths, key, strict=True)
    ]


def ratio_for(lengths: Sequence[int], key: Sequence[bool], total: int, others: str) -> float:
    """The largest share, in thousandths, by which events keep at most `total` tokens; the smallest where none does."""
    low, high = 1, 1000
    while low < high:
        middle = (low + high + 1) // 2
        if sum(event_keeps(lengths, key, middle / 1000, others)) <= total:
            low = middle
        else:
            high = middle - 1
    return low / 1000


def best_of_each(scores: Tensor, events: Tensor, keeps: Sequence[int]) -> Tensor:
    """Ascending indices of the highest scores of each event; ties go to the lowest index.

    Args:
        scores: [N].
        events: [N] which event each is in; anything else than 0, 1, ... is in none and stays.
        keeps: Tokens that each event keeps.
    """
    kept = [((events < 0) | (events >= len(keeps))).nonzero()[:, 0]]
    for event, count in enumerate(keeps):
        mine = (events == event).nonzero()[:, 0]
        kept.append(mine[scores[mine].argsort(descending=True, stable=True)[:count]])
    return torch.cat(kept).sort().values
