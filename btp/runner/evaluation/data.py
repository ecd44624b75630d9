"""Data loading: prompts by the chat template, batches by the processor, in worker processes."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, takewhile
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from btp.models.chat_template import chat_inputs
from btp.models.text_processor import PLAIN
from btp.models.video.clips import Frames, clip_tokens
from btp.runner.evaluation.processing import processed
from btp.runner.out_of_memory import out_of_memory
from btp.tasks.files.images import picture_sizes
from btp.tasks.sample import Sample, Task
from btp.tasks.size_limits import MOST_PIXELS

Samples = Sequence[Sample] | Task
MOST_WORKERS = 4
SHARED_BYTES = 1 << 30  # shared memory that batches of pictures may need on their way between processes


class Batch:
    """Inputs of one forward, with their samples.

    Attributes:
        inputs: tensors for generate, padded on the left.
        samples: one per row, without their pictures and videos.
        pictures: names of the pictures in the inputs, in order.
        indices: Indices of the samples, to make the batch again; empty where nobody does.
        clips: Videos of each row, of which the inputs hold placeholders alone; frames are opened when they are encoded.
        made: False where there was no memory to make it: it has no inputs, and its samples go in smaller batches.
    """

    made = True

    def __init__(
        self,
        inputs: Mapping[str, Tensor],
        samples: Sequence[Sample],
        pictures: Sequence[str] = (),
        indices: Sequence[int] = (),
        clips: Sequence[Sequence[Frames]] = (),
    ):
        self.inputs, self.samples = dict(inputs), list(samples)
        self.pictures, self.indices, self.clips = list(pictures), list(indices), list(clips)

    def to(self, device: torch.device, dtype: torch.dtype | None = None, **kwargs: Any) -> Batch:
        """The batch on another device, floating-point inputs (pictures) in another dtype."""
        moved = {k: v.to(device, dtype if v.is_floating_point() else None, **kwargs) for k, v in self.inputs.items()}
        return Batch(moved, self.samples, self.pictures, self.indices, self.clips)

    def pin_memory(self) -> Batch:
        """The batch in memory from which a GPU copies while it computes."""
        pinned = {k: v.pin_memory() for k, v in self.inputs.items()}
        return Batch(pinned, self.samples, self.pictures, self.indices, self.clips)


def turns_of(processor: Any, sample: Sample, share: float = 1.0) -> list[dict[str, Any]]:
    """A chat of one turn: the pictures, then the videos, then the question.

    Args:
        share: 0 leaves out the context that a question about a text has.

    Raises:
        ValueError: the question holds what the model takes for a picture.
    """
    question = sample.question if share else sample.bare_question
    for kind, name in (("image", "a picture"), ("video", "a video")):
        mark = getattr(processor, f"{kind}_token", None)
        if mark and mark in question:
            raise ValueError(
                f"sample {sample.id}: its question holds {mark}, by which this model marks {name}. Take it out."
            )
    shown = [{"type": "image"}] * len(sample.images) + [{"type": "video"}] * len(sample.clips)
    content = [*shown, {"type": "text", "text": question}]
    plain = not sample.chat and hasattr(processor, "chat")
    return [{"role": PLAIN if plain else "user", "content": content}]


def shrink(picture: Image.Image, share: float) -> Image.Image:
    """Keep `share` of a picture's pixels by area averaging, and enlarge it to its old size again."""
    width, height = (max(1, round(n * math.sqrt(share))) for n in picture.size)
    return picture.resize((width, height), Image.Resampling.BOX).resize(picture.size, Image.Resampling.BILINEAR)


def shrunk(pictures: Sequence[Sequence[Image.Image]], shares: Sequence[float]) -> list[list[Image.Image]]:
    """The pictures of each sample, with the sample's share of their pixels; without shares as they are."""
    every = shares or [1.0] * len(pictures)
    return [[p if n == 1 else shrink(p, n) for p in mine] for mine, n in zip(pictures, every, strict=True)]


class Collate:
    """Makes one padded batch of samples.

    Args:
        processor: pads on the left.
    """

    def __init__(self, processor: Any):
        self.processor = processor

    def __call__(self, samples: Sequence[Sample], indices: Sequence[int] = (), shares: Sequence[float] = ()) -> Batch:
        """Build prompts and inputs.

        Args:
            samples: one per row.
            indices: Indices of the samples, to make the batch again.
            shares: of the pixels that the pictures of each sample keep, or of its text's context (0 or 1); none leaves
                them alone.
        """
        pictures = shrunk([s.images for s in samples], shares)
        every = shares or [1.0] * len(samples)
        chats = [turns_of(self.processor, s, share) for s, share in zip(samples, every, strict=True)]
        clips = [s.clips for s in samples] if any(s.clips for s in samples) else []
        inputs, _ = processed(
            partial(chat_inputs, self.processor), samples, chats, pictures, *([clips] if clips else [])
        )
        names = [f"{s.id}-{i}" for s in samples for i in range(len(s.images))]
        return Batch(inputs, [replace(s, images=(), clips=()) for s in samples], names, indices, clips)


class Feed:
    """Makes the batches of a run, ahead of their use and in worker processes that live until it is closed.

    Args:
        samples: Samples of the task.
        processor: pads on the left.
        workers: processes; 0 makes batches here, when they are asked for.
        pin: batches are for a GPU.
        collate: what makes them.
        pixels: of each sample's pictures; a batch takes fewer samples where its pictures would have too many together.
        groups: Groups of each sample; a batch has samples of one group alone. Empty where any may share one.
    """

    def __init__(
        self,
        samples: Samples,
        processor: Any,
        workers: int = 0,
        pin: bool = False,
        collate: Callable[..., Collate] = Collate,
        pixels: Sequence[int] = (),
        groups: Sequence[object] = (),
    ):
        self.samples, self.processor, self.collate, self.pixels = samples, processor, collate, pixels
        self.groups = groups
        self._plan = _Plan()
        ahead = {"persistent_workers": True, "multiprocessing_context": "fork"} if workers else {}
        make = _Make(samples, processor, collate)
        items = _Items()
        self._here = DataLoader(items, batch_sampler=self._plan, collate_fn=make)
        self._ahead = DataLoader(
            items, batch_sampler=self._plan, collate_fn=make, num_workers=workers, pin_memory=pin, **ahead
        )

    def batches(self, indices: Sequence[int], size: int, shares: Mapping[int, float] | None = None) -> Batches:
        """Batches of samples in the order of `indices`; one pass at a time.

        Args:
            size: samples a batch.
            shares: Shares of the pixels that the pictures of a sample keep, by its index; all where it is not in them.
        """
        return Batches(self, list(indices), size, shares or {})

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes. Left to the garbage collector, which takes their queues first, each ends late."""
        begun = self._ahead._iterator
        if (shut_down := getattr(begun, "_shutdown_workers", None)) is not None:
            shut_down()
        self._ahead._iterator = None

    def make(self, indices: Sequence[int], shares: Mapping[int, float]) -> Batch:
        """One batch, here and now."""
        every = [shares.get(i, 1.0) for i in indices]
        return self.collate(self.processor)([self.samples[i] for i in indices], indices, every)


class Batches:
    """One pass over samples. It has no length, since its size may change on the way.

    Attributes:
        size: samples a batch, for those that are not on their way yet.
        total: samples.
    """

    def __init__(self, feed: Feed, indices: list[int], size: int, shares: Mapping[int, float]):
        self.feed, self.indices, self.size, self.shares = feed, indices, size, shares
        self.total = len(indices)

    def __iter__(self) -> Iterator[Batch]:
        self.feed._plan.batches = self
        alone = self.total <= self.size  # other processes would take longer to start
        for batch in self.feed._here if alone else self.feed._ahead:
            if isinstance(batch, _Failed):
                raise batch.error
            yield self._unmade(batch.indices) if isinstance(batch, _NoRoom) else batch

    def _unmade(self, indices: Sequence[int]) -> Batch:
        bare = [replace(self.feed.samples[i], images=(), clips=()) for i in indices]
        batch = Batch({}, bare, indices=indices)
        batch.made = False
        return batch

    def again(self, indices: Sequence[int]) -> Batch:
        """A batch of some of the samples."""
        return self.feed.make(indices, self.shares)

    def earlier(self, indices: Sequence[int]) -> Batch:
        """A batch of the questions that were asked about the same pictures before.

        Raises:
            ValueError: a sample has none.
        """
        samples = [self.feed.samples[i] for i in indices]
        without = next((s.id for s in samples if not s.earlier), None)
        if without is not None:
            raise ValueError(
                f"sample {without} has no question that was asked before, which pruner late chooses by. Set "
                "task=pocketvqa task.dataset.earlier=true, or leave the arm late out."
            )
        return self.feed.collate(self.feed.processor)([replace(s, question=s.earlier) for s in samples], indices)


class _Plan(Sampler):
    """Which samples come next; read by the processes that make batches, written by who wants them."""

    def __init__(self) -> None:
        self.batches: Batches | None = None

    def __iter__(self) -> Iterator[list[tuple[int, float]]]:
        mine = self.batches
        assert mine is not None
        at = 0
        while at < mine.total:
            some = mine.indices[at : at + mine.size]
            size = _decodable([mine.feed.pixels[i] for i in some]) if mine.feed.pixels else len(some)
            if mine.feed.groups:
                group = mine.feed.groups[some[0]]
                size = min(size, sum(1 for _ in takewhile(lambda i, g=group: mine.feed.groups[i] == g, some)))
            yield [(i, mine.shares.get(i, 1.0)) for i in some[:size]]
            at += size


def _decodable(pixels: Sequence[int]) -> int:
    """How many samples, from the first on, have pictures that are decoded together."""
    return max(1, sum(total <= MOST_PIXELS for total in accumulate(pixels)))


class _Items(Dataset):
    """Places of samples, each with what a batch needs to know of it."""

    def __getitem__(self, item: tuple[int, float]) -> tuple[int, float]:
        return item


@dataclass(frozen=True)
class _Failed:
    """An error on its way from another process, which the loader would put a traceback into."""

    error: ValueError | OSError


@dataclass(frozen=True)
class _NoRoom:
    """A batch that there was no memory for, on its way from another process."""

    indices: Sequence[int]


class _Make:
    """Reads samples and turns them into a batch."""

    def __init__(self, samples: Samples, processor: Any, collate: Callable[..., Collate]):
        self.samples, self.processor, self.collate = samples, processor, collate

    def __call__(self, items: Sequence[tuple[int, float]]) -> Batch | _Failed | _NoRoom:
        indices, shares = zip(*items, strict=True)
        try:
            return self.collate(self.processor)([self.samples[i] for i in indices], indices, shares)
        except (ValueError, OSError) as error:
            return _Failed(error)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            return _NoRoom(indices)


def workers_for(asked: int | None, world: int) -> int:
    """How many processes make batches for each of `world` processes that use them.

    Args:
        asked: by the config; None leaves one core to who uses the batches, and takes what is there of the others.
    """
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    spare = cores // world - 1
    return max(0, min(MOST_WORKERS, spare)) if _shared_memory() >= SHARED_BYTES else 0


def _shared_memory() -> int:
    """Free bytes of what carries batches between processes; containers are often started with little."""
    try:
        free = os.statvfs("/dev/shm")
    except (OSError, AttributeError):
        return 0
    return free.f_bavail * free.f_frsize


def by_length(samples: Sequence[Sample], processor: Any = None, pictured: Sequence[int] | None = None) -> list[int]:
    """Order of indices that puts together what takes equally long: questions of one ability, whose answers are alike,
    and among these prompts of like length, the longest first, so that memory ends early if at all.

    Args:
        processor: counts the tokens of a prompt, pictures included; None counts letters.
        pictured: `visual_tokens` of these samples, where they are known already.
    """
    if processor is None:
        lengths = [len(s.question) for s in samples]
    else:
        words = processor.tokenizer([s.question for s in samples], add_special_tokens=False)["input_ids"]
        pictured = visual_tokens(samples, processor) if pictured is None else pictured
        lengths = [len(w) + n for w, n in zip(words, pictured, strict=True)]
    return sorted(range(len(samples)), key=lambda i: (samples[i].ability, -lengths[i], samples[i].id))


def visual_tokens(
    samples: Sequence[Sample], processor: Any, sizes: Sequence[Sequence[tuple[int, int]]] | None = None
) -> list[int]:
    """Visual tokens of each sample, as near as can be told without decoding its pictures.

    Args:
        sizes: (height, width) of each sample's pictures, where they are known already.
    """
    sizes = [picture_sizes(s.images) for s in samples] if sizes is None else sizes
    unique = list(dict.fromkeys(size for mine in sizes for size in mine))
    known = dict(zip(unique, picture_tokens(processor, unique), strict=True))
    clips = [clip_tokens(processor, s.clips) for s in samples]
    return [sum(known[size] for size in mine) + n for mine, n in zip(sizes, clips, strict=True)]


def picture_tokens(processor: Any, sizes: Sequence[tuple[int, int]]) -> list[int]:
    """Visual tokens of pictures of these sizes (height, width); by 28 x 28 pixels where the processor cannot tell."""
    count = getattr(processor, "_get_num_multimodal_tokens", None)
    with contextlib.suppress(TypeError, KeyError, AttributeError, ValueError):
        if count is not None:
            return list(count(image_sizes=[list(size) for size in sizes])["num_image_tokens"])
    return [math.ceil(height / 28) * math.ceil(width / 28) for height, width in sizes]
