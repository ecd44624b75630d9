"""Training samples as a model's inputs: the prompt as inference has it, and the answer behind it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from btp.runner.evaluation.data import Collate, Samples
from btp.tasks.sample import Sample

IGNORED = -100


@dataclass(frozen=True, eq=False)
class Taught:
    """One batch. B rows, P tokens of the prompts with their padding, A of the answers.

    Attributes:
        inputs: Inputs of the model, [B, P + A] where they go by token; padded in front of prompts and behind answers.
        prompt: [B, P + A] bool, real tokens of the prompts.
        target: [B, A] tokens of the answers with the one that ends them, IGNORED where padded.
    """

    inputs: dict[str, Tensor]
    prompt: Tensor
    target: Tensor

    def to(self, device: torch.device, dtype: torch.dtype | None = None, **kwargs: Any) -> Taught:
        """On another device, pictures in another dtype."""
        moved = {k: v.to(device, dtype if v.is_floating_point() else None, **kwargs) for k, v in self.inputs.items()}
        return Taught(moved, self.prompt.to(device, **kwargs), self.target.to(device, **kwargs))


class Teach:
    """Makes batches of training samples.

    Args:
        processor: Processor of the model; pads on the left.
        samples: Samples with references.
        batch: samples of a step, over all processes.
        seed: Seed of the order, which is another one in every pass over the samples.
        longest: tokens of an answer; more are cut off.
        rank, world: of this process, which makes every `world`-th row.
        tested: keys of samples that must not be trained on.
    """

    def __init__(
        self,
        processor: Any,
        samples: Samples,
        batch: int,
        seed: int,
        longest: int,
        rank: int = 0,
        world: int = 1,
        tested: Collection[str] = (),
    ) -> None:
        self.processor, self.samples, self.batch, self.seed, self.longest = processor, samples, batch, seed, longest
        self.rank, self.world, self.tested = rank, world, frozenset(tested)
        self._order = lru_cache(2)(self._shuffled)

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, 78, epoch]).permutation(len(self.samples))

    def indices(self, step: int) -> list[int]:
        """Samples of a step, all processes' together."""
        places = range(step * self.batch, (step + 1) * self.batch)
        return [int(self._order(at // len(self.samples))[at % len(self.samples)]) for at in places]

    def draw(self, step: int) -> Taught:
        """This process's rows of a step."""
        mine = self.indices(step)[self.rank :: self.world]
        return self.collate([self.samples[i] for i in mine])

    def collate(self, samples: Sequence[Sample]) -> Taught:
        """One batch of samples.

        Raises:
            ValueError: a sample has no answer, or is one that is tested on.
        """
        for sample in samples:
            if not sample.reference.strip():
                raise ValueError(
                    f"training sample {sample.id} has no answer, and training needs one. Leave it out, or name other "
                    "files in training.path."
                )
            if self.tested and key_of(sample) in self.tested:
                raise ValueError(
                    f"training sample {sample.id} is one of the test samples: same picture, same question. Train on "
                    "another split (training.dataset.split, training.path), or test on another task."
                )
        inputs = Collate(self.processor)(samples).inputs
        return with_answers(inputs, [self.encoded(sample.reference) for sample in samples], self.pad)

    def encoded(self, answer: str) -> list[int]:
        """Tokens of an answer as the model would say it, with the one that ends it."""
        tokenizer = self.processor.tokenizer
        ids = tokenizer(answer.strip(), add_special_tokens=False)["input_ids"]
        return [*ids[: self.longest - 1], tokenizer.eos_token_id]

    @property
    def pad(self) -> int:
        """Token that fills rows."""
        tokenizer = self.processor.tokenizer
        return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


def with_answers(inputs: dict[str, Tensor], answers: Sequence[Sequence[int]], pad: int) -> Taught:
    """Prompts with their answers behind them.

    Args:
        inputs: Inputs of the prompts [B, P], padded in front.
        answers: token ids.
        pad: fills behind the shorter ones.
    """
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    longest = max(map(len, answers))
    target = torch.full((len(ids), longest), IGNORED)
    for row, answer in enumerate(answers):
        target[row, : len(answer)] = torch.tensor(answer)
    said = target != IGNORED
    found = {k: v for k, v in inputs.items() if v.shape[:2] != ids.shape or v.dim() != 2}
    for name, value in inputs.items():
        if name not in found:
            found[name] = torch.cat([value, value.new_zeros(target.shape)], dim=1)
    found["input_ids"] = torch.cat([ids, target.masked_fill(~said, pad).to(ids.dtype)], dim=1)
    found["attention_mask"] = torch.cat([mask, said.to(mask.dtype)], dim=1)
    prompt = torch.cat([mask != 0, torch.zeros_like(said)], dim=1)
    return Taught(found, prompt, target)


def key_of(sample: Sample) -> str:
    """Names a sample by its question and pictures."""
    found = hashlib.sha256(sample.question.encode())
    for picture in sample.images:
        found.update(repr((picture.size, picture.mode)).encode())
        found.update(picture.tobytes())
    return found.hexdigest()
