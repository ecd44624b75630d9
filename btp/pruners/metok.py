"""METok: events of a video, pooled as they matter, pruned event by event, and gone from deep layers and decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from btp.core.check_settings import check_one_of, check_whole
from btp.core.keep import on_device
from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import Selection
from btp.core.signals import Signal, Signals
from btp.core.site import Site
from btp.ops.video_events import (
    POOLS,
    Events,
    best_of_each,
    cut_events,
    event_keeps,
    judge_events,
    neighbours,
    pool_frame,
    ratio_for,
)

Match = Callable[[str, Sequence, torch.device], Tensor]
EVENT, KEY = "event", "key"  # numbers that travel with tokens: which event of the row (-1 none), whether a key event
OTHERS = ("half", "none")


@dataclass(frozen=True)
class Asked:
    """What the prompt in one row of a batch asks of which videos.

    Attributes:
        question: its text, without the chat template.
        clips: its videos in the order of the prompt, behind all pictures; each a sequence of frames (PIL pictures)
            that may open them only when they are looked at.
    """

    question: str
    clips: tuple[Sequence[Any], ...] = ()


@dataclass(frozen=True)
class Video:
    """One video of a row.

    Attributes:
        places: [n] which of the row's tokens are its.
        frame: [n] row of tokens in time of each; -1 off the grid.
        events: Its events.
    """

    places: Tensor
    frame: Tensor
    events: Events


class METok(Pruner):
    """Multi-stage event-based token compression, in three kinds of stage.

    At `llm.input` every video is cut into events where neighbouring frames are least alike. Events and frames that
    match the question are found by a contrastive model; frames are pooled anew from what the projector made of them,
    the finer the more they matter, and each event ends in a newline. Where that stage keeps 1.0, events are found and
    no frame is pooled, as on models that pool in front of their projector. At `llm.layer.N` each event keeps the tokens
    that the text behind looks at most: a share of a key event, half of that share or none of another. A stage that
    keeps 0 needs no decision, and neither do those at `llm.cache.N`, which keep decoding from the frames.

    Pictures beside videos are in no event: they stay until a stage keeps 0. A row without videos is left alone.

    Args:
        matcher: (question, frames, device) -> [T] how well frames match.
        events: most events of a video.
        key_events: Number of key events.
        key_frames: Number of key frames of each event.
        pool: bilinear | average | max.

    Source: Wang et al. 2025, arXiv:2506.02850, and its released code, whose constants are 5 events (4 cuts), 3 and 6.
    The code matches the whole chat prompt, here it is the question; it supports one video a prompt and batches of one.
    """

    adaptive = True
    stage_settings = frozenset({"ratio", "others"})
    events: list[list[dict[str, Any]]]  # of each row of the latest batch, for reports: see `described`

    def __init__(self, *, matcher: Match, events: int, key_events: int, key_frames: int, pool: str) -> None:
        for name, value in (("events", events), ("key_events", key_events), ("key_frames", key_frames)):
            check_whole(f"pruner.method.{name}", value, "a whole number from 1 on")
        check_one_of("pruner.method.pool", pool, POOLS)
        self.matcher, self.pool = matcher, pool
        self.number, self.key_events, self.key_frames = events, key_events, key_frames
        self._asked: Sequence[Asked] | None = None
        self.events: list[list[dict[str, Any]]] = []

    def set_clips(self, rows: Sequence[Asked]) -> None:
        """Say what each row of the coming batch asks, of which videos; before each batch.

        No rows at all say that nobody asks anything, as where a method is only timed: every picture of several frames
        is a video then, and all frames match alike.
        """
        self._asked = rows

    def check(self, schedule: Schedule) -> None:
        """Refuse stages in another order than input, layers, and settings out of range."""
        super().check(schedule)
        deciding = [(i, stage) for i, stage in enumerate(schedule) if not stage.withdraws_all]
        for turn, (i, stage) in enumerate(deciding):
            ratio, others = stage.settings.get("ratio"), stage.settings.get("others", OTHERS[0])
            wanted = "llm.input" if turn == 0 else "llm.layer.N behind it"
            if (str(stage.site) == "llm.input") != (turn == 0) or stage.site.kind == "cache":
                raise ValueError(
                    f"schedule.{i}.site is {stage.site}, but pruner 'metok' finds events at llm.input and prunes them "
                    f"between decoder layers. Set schedule.{i}.site to {wanted}."
                )
            if turn and stage.site.layer < 1:
                raise ValueError(
                    f"schedule.{i}.site is {stage.site}, in front of which no layer has looked at tokens. "
                    f"Set schedule.{i}.site to llm.layer.1 or later."
                )
            if ratio is not None and not (isinstance(ratio, int | float) and 0 < ratio <= 1):
                raise ValueError(f"schedule.{i}.ratio is {ratio!r}. Write a share in (0, 1], or null to meet the keep.")
            check_one_of(f"schedule.{i}.others", others, OTHERS)

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """Frames behind the projector at the input where they are pooled; attention of the text at a layer."""
        if stage.withdraws_all:
            return ()
        if stage.site.kind == "input":
            return () if stage.keep == 1.0 else (Signal("projected", Site.parse("llm.input")),)
        return (Signal("attention", stage.site.previous_layer, "text", "probs"),)

    def needs_grid(self, stage: Stage) -> bool:
        """The input's stage does."""
        return stage.site.kind == "input"

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Pool at the input, prune at a layer."""
        if stage.site.kind == "input":
            return self._enter(tokens, signals, stage)
        return self._prune(tokens, signals, stage)

    def explain(self, tokens: Tokens, signals: Signals, stage: Stage) -> dict[str, Tensor]:
        """How well a token's frame matches the question at the input; attention of the text at a layer."""
        if stage.site.kind != "input":
            return {"attention": _attention(tokens, signals, self.needs(stage)[0])}
        return {}

    def _enter(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        whole = stage.keep == 1.0
        projected = None if whole else signals[self.needs(stage)[0]]
        rows, start, self.events = [], 0, []
        for row, asked in enumerate(self._rows(tokens)):
            videos = []
            for places, clip in self._videos(tokens, row, asked, projected):
                frames = None
                if projected is not None:
                    frames, start = projected[start : start + len(clip)], start + len(clip)
                videos.append((self._events(tokens, row, places, asked.question, clip, frames), frames))
            rows.append(self._row(tokens, row, videos))
            self.events.append(described([video.events for video, _ in videos], rows[-1].event))
        if projected is not None and start != len(projected):
            raise ValueError(
                f"pruner 'metok' was told of {start} frames of the batch's videos, but {len(projected)} were encoded. "
                "Call set_clips with the questions and videos of this batch."
            )
        return _selection(rows, tokens)

    def _rows(self, tokens: Tokens) -> Sequence[Asked]:
        rows = len(tokens.valid)
        if self._asked is not None and not len(self._asked):
            return [Asked("")] * rows
        if self._asked is None or len(self._asked) != rows:
            told = "nothing" if self._asked is None else f"{len(self._asked)} rows"
            raise ValueError(
                f"pruner 'metok' matches frames with questions, but was told {told} of a batch of {rows}. Call "
                "pruner.set_clips([Asked(question, clips), ...]), one for each row, before each batch."
            )
        return self._asked

    def _videos(
        self, tokens: Tokens, row: int, asked: Asked, projected: Tensor | None
    ) -> list[tuple[Tensor, Sequence]]:
        """The tokens of each video and its frames: the last pictures of the row are the videos."""
        image = tokens.image[row].masked_fill(~tokens.valid[row], -1)
        pictures = int(image.max()) + 1 if image.numel() else 0
        if not self._asked:
            every = [
                (image == i).nonzero()[:, 0] for i in range(pictures if projected is None or len(projected) else 0)
            ]
            deep = [int(tokens.coord[row, places, 0].max()) + 1 for places in every]
            return [(places, range(n)) for places, n in zip(every, deep, strict=True) if n > 1]
        if pictures < len(asked.clips):
            raise ValueError(
                f"pruner 'metok' was told of {len(asked.clips)} videos in row {row}, whose prompt has {pictures} "
                "pictures and videos together. Call set_clips with what the prompt shows."
            )
        first = pictures - len(asked.clips)
        return [((image == first + i).nonzero()[:, 0], clip) for i, clip in enumerate(asked.clips)]

    def _events(
        self, tokens: Tokens, row: int, places: Tensor, question: str, clip: Sequence, frames: Tensor | None
    ) -> Video:
        frame = tokens.coord[row, places, 0]
        deep = int(frame.max()) + 1
        if frames is None:
            hidden = tokens.hidden[row, places]
            frames = torch.stack([hidden[frame == t].mean(0, keepdim=True) for t in range(deep)])
        match = self.matcher(question, clip, tokens.hidden.device).tolist() if self._asked else [0.0] * deep
        per_time = -(-len(match) // deep)  # frames that share a row of tokens in time
        match = [max(match[t * per_time : (t + 1) * per_time]) for t in range(deep)]
        spans = cut_events(neighbours(frames).tolist(), self.number)
        return Video(places, frame, judge_events(spans, match, self.key_events, self.key_frames))

    def _row(self, tokens: Tokens, row: int, videos: Sequence[tuple[Video, Tensor | None]]) -> _Kept:
        """What one row keeps: everything that is in no video, and each video pooled."""
        hidden = tokens.hidden[row]
        real = tokens.valid[row].nonzero()[:, 0]
        inside = torch.cat([video.places for video, _ in videos]) if videos else real[:0]
        rest = real[~torch.isin(real, inside)]
        parts, before = [_Kept(rest, hidden[rest], *_labels(rest, -1, 0.0))], 0
        for video, frames in videos:
            made = _labelled(video, hidden) if frames is None else self._pooled(video, frames, hidden)
            event = made.event + before
            parts.append(_Kept(made.keep, made.states, event, made.key))
            before += len(video.events.spans)
        keep = torch.cat([part.keep for part in parts])
        order = keep.argsort(stable=True)
        each = (torch.cat([getattr(part, name) for part in parts])[order] for name in ("states", "event", "key"))
        return _Kept(keep[order], *each)

    def _pooled(self, video: Video, frames: Tensor, hidden: Tensor) -> _Kept:
        """Pooled frames event by event, each with a newline behind; on placeholders of its frames as far as it goes.

        Where a video would be longer than the host's own, the newlines of its first events are left out.
        """
        side, strides = round(frames.shape[1] ** 0.5), video.events.strides()
        off = video.frame < 0
        newline = hidden[video.places[off][-1]] if bool(off.any()) else None
        states, events, wished, spare = [], [], [], []
        room, each = len(video.places), int((video.frame == 0).sum())
        for number, (first, end) in enumerate(video.events.spans):
            for t in range(first, end):
                made = pool_frame(frames[t].unflatten(0, (side, side)), strides[t], self.pool).flatten(0, 1)
                at = torch.linspace(0, each - 1, len(made)).round().long() + t * each
                states.append(made)
                events += [number] * len(made)
                wished += at.tolist()
            if newline is not None:
                spare.append(len(wished))
                states.append(newline[None])
                events.append(number)
                wished.append(end * each - 1)
        sequence, keep = torch.cat(states), list(range(len(wished)))
        surplus = max(len(wished) - room, 0)
        keep = [j for j in keep if j not in set(spare[:surplus])]
        places = _ascending([wished[j] for j in keep], room)
        chosen = video.places[on_device(places, video.places.device)]
        event = on_device([events[j] for j in keep], hidden.device)
        key = on_device(video.events.key, hidden.device)[event].to(hidden.dtype)
        return _Kept(chosen, sequence[on_device(keep, sequence.device)].to(hidden), event, key)

    def _prune(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        score = _attention(tokens, signals, self.needs(stage)[0])
        counts, rows = tokens.keep_counts(stage), []
        for row, wanted in enumerate(counts):
            real = int(tokens.valid[row].sum())
            if stage.keep == 1.0 or EVENT not in tokens.carried:
                kept = torch.arange(real, device=score.device)
            else:
                event = tokens.carried[EVENT][row, :real].long()
                keeps = self._keeps(tokens, row, event, stage, wanted)
                kept = best_of_each(score[row, :real], event, keeps)
                for found, count in zip(self.events[row] if self.events else (), keeps, strict=False):
                    found["tokens"].append(count)
            rows.append(kept)
        keep = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
        return Selection(keep, counts=tuple(map(len, rows)), scores=score)

    def _keeps(self, tokens: Tokens, row: int, event: Tensor, stage: Stage, wanted: int) -> list[int]:
        """Tokens that each event of a row keeps."""
        most = int(event.max()) + 1 if len(event) else 0
        key = tokens.carried[KEY][row, : len(event)] > 0
        lengths = [int((event == e).sum()) for e in range(most)]
        matters = [bool(key[event == e].any()) for e in range(most)]
        others, ratio = stage.settings.get("others", OTHERS[0]), stage.settings.get("ratio")
        if ratio is None:
            ratio = ratio_for(lengths, matters, wanted - int((event < 0).sum()), others)
        return event_keeps(lengths, matters, ratio, others)


@dataclass(frozen=True)
class _Kept:
    """Tokens that stay of a row, ascending: which, what they hold, and the numbers that travel with them."""

    keep: Tensor
    states: Tensor
    event: Tensor
    key: Tensor


def described(videos: Sequence[Events], event: Tensor) -> list[dict[str, Any]]:
    """The events of a row as a report reads them.

    Args:
        videos: Events of each video.
        event: [K] Number of the event that each token is in, counted over all videos.

    Returns:
        Of each event its video, first and end (rows of tokens in time), key, match, key_frames, and tokens: how many it
        has, to which each stage adds a number.
    """
    found = []
    for number, video in enumerate(videos):
        for (first, end), key, match in zip(video.spans, video.key, video.match, strict=True):
            frames = [frame for frame in range(first, end) if frame in video.key_frames]
            count = int((event == len(found)).sum())
            found.append(
                {"video": number, "first": first, "end": end, "key": key, "match": round(match, 4)}
                | {"key_frames": frames, "tokens": [count]}
            )
    return found


def _labels(places: Tensor, event: int, key: float) -> tuple[Tensor, Tensor]:
    return torch.full_like(places, event), torch.full(places.shape, key, device=places.device)


def _labelled(video: Video, hidden: Tensor) -> _Kept:
    """A video whose tokens all stay; what lies off the grid is of the event of the frame behind it, or of the last."""
    spans = video.events.spans
    of_frame = on_device([e for e, (a, b) in enumerate(spans) for _ in range(a, b)], video.frame.device)
    frame, last = video.frame.tolist(), spans[-1][1] - 1
    for i in reversed(range(len(frame))):
        frame[i] = frame[i] if frame[i] >= 0 else (frame[i + 1] if i + 1 < len(frame) else last)
    event = of_frame[on_device(frame, video.frame.device)]
    key = on_device(video.events.key, hidden.device)[event].to(hidden.dtype)
    return _Kept(video.places, hidden[video.places], event, key)


def _ascending(wished: Sequence[int], room: int) -> list[int]:
    """Places below `room`, each larger than the one before, as near to the wished ones as that allows."""
    found: list[int] = []
    for place in wished:
        found.append(max(place, found[-1] + 1 if found else 0))
    most = room
    for i in reversed(range(len(found))):
        most = found[i] = min(found[i], most - 1)
    return found


def _attention(tokens: Tokens, signals: Signals, signal: Signal) -> Tensor:
    """[B, N] what the text behind the pictures looks at, mean over heads and rows, in float32."""
    real = signals.rows_valid(signal)[:, None, :, None]
    seen = signals[signal].float().masked_fill(~real, 0)
    return seen.mean(1).sum(1) / real[:, 0].sum(1).clamp(min=1)


def _selection(rows: Sequence[_Kept], tokens: Tokens) -> Selection:
    def padded(name: str, value: float) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence([getattr(r, name) for r in rows], batch_first=True, padding_value=value)

    keep, shown = padded("keep", -1), torch.zeros(tokens.valid.shape, device=tokens.hidden.device)
    carried = {name: _of_shown(shown, keep, padded(name, 0)) for name in (EVENT, KEY)}
    counts = tuple(len(row.keep) for row in rows)
    return Selection(keep, states=padded("states", 0), counts=counts, carried=carried)


def _of_shown(shown: Tensor, keep: Tensor, values: Tensor) -> Tensor:
    """[B, N] numbers of kept tokens [B, K] at their places, 0 elsewhere."""
    room = torch.cat([shown, shown[:, :1]], 1).to(values)
    return room.scatter(1, keep.where(keep >= 0, shown.shape[1]), values)[:, :-1]
