"""From samples to model inputs: prompts by the chat template, batches by the processor, shards by rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from btp.tasks.sample import Sample, Task


class Batch:
    """What one forward answers.

    Attributes:
        inputs: tensors for generate, padded on the left.
        samples: one per row.
    """

    def __init__(self, inputs: Mapping[str, Tensor], samples: Sequence[Sample]):
        self.inputs, self.samples = dict(inputs), list(samples)

    def to(self, device: torch.device, dtype: torch.dtype | None = None, **kwargs: Any) -> Batch:
        """The batch on another device, floating-point inputs (pictures) in another dtype."""
        moved = {k: v.to(device, dtype if v.is_floating_point() else None, **kwargs) for k, v in self.inputs.items()}
        return Batch(moved, self.samples)


def prompt(processor: Any, sample: Sample) -> str:
    """The text of a one-turn chat: the pictures, then the question."""
    content = [{"type": "image"} for _ in sample.images] + [{"type": "text", "text": sample.question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def shrink(picture: Image.Image, share: float) -> Image.Image:
    """Keep `share` of a picture's pixels by area averaging, and enlarge it to its old size again."""
    width, height = (max(1, round(n * math.sqrt(share))) for n in picture.size)
    return picture.resize((width, height), Image.Resampling.BOX).resize(picture.size, Image.Resampling.BILINEAR)


class Collate:
    """Makes one padded batch of samples.

    Args:
        processor: pads on the left.
        share: of the pixels that each picture keeps; 1 leaves it alone.
    """

    def __init__(self, processor: Any, share: float = 1.0):
        self.processor, self.share = processor, share

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Build prompts and inputs; Lightning moves them to the device."""
        pictures = [[p if self.share == 1 else shrink(p, self.share) for p in s.images] for s in samples]
        texts = [prompt(self.processor, s) for s in samples]
        images = pictures if any(pictures) else None
        inputs = self.processor(images=images, text=texts, padding=True, return_tensors="pt")
        return Batch(inputs, samples)


class Shard(torch.utils.data.Dataset):
    """Every world-th of the wanted samples, from rank on: no padding, no repeats."""

    def __init__(self, task: Task | Sequence[Sample], indices: Sequence[int], rank: int, world: int):
        self.task, self.indices = task, list(indices)[rank::world]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Sample:
        return self.task[self.indices[i]]


def loader(
    task: Task | Sequence[Sample],
    indices: Sequence[int],
    collate: Callable,
    batch: int,
    workers: int,
    rank: int = 0,
    world: int = 1,
) -> DataLoader:
    """Batches in the order of `indices`."""
    shard = Shard(task, indices, rank, world)
    return DataLoader(shard, batch_size=batch, shuffle=False, num_workers=workers, collate_fn=collate)


def by_length(samples: Sequence[Sample]) -> list[int]:
    """Order of indices that puts questions of the same form together, so that a batch ends its answers together."""
    return sorted(range(len(samples)), key=lambda i: (samples[i].ability, len(samples[i].question), samples[i].id))
