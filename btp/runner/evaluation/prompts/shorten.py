"""Truncates the middle of prompts that are longer than a model's context, where a task asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from btp.models.loading.load import Loaded
from btp.runner.arms import Arm
from btp.runner.evaluation.data import Collate
from btp.runner.evaluation.prompts.prompt_length import context_of
from btp.tasks.sample import Sample, Task

Spans = tuple[tuple[int, int], ...]


@runtime_checkable
class Shortened(Protocol):
    """A task whose prompts lose their middle.

    Attributes:
        longest: tokens of a question that stay; None is what the model reads, less template and answer.
    """

    longest: int | None


def shortened(task: Task, samples: Sequence[Sample], loaded: Loaded) -> list[Sample]:
    """The samples, without the middle of those that are too long; all as they are, where the task does not ask for it.

    Half of the tokens stay at the beginning and half at the end, as LongBench has it; spans keep to their words.
    """
    if not isinstance(task, Shortened):
        return list(samples)
    context = context_of(loaded)
    if task.longest is None and context is None:
        return list(samples)
    collate = Collate(loaded.processor)
    around = {chat: _around(next(s for s in samples if s.chat == chat), collate) for chat in {s.chat for s in samples}}

    def limit(sample: Sample) -> int:
        if task.longest is not None:
            return task.longest
        assert context is not None
        return context[0] - around[sample.chat] - (sample.max_new_tokens or task.max_new_tokens)

    return [without_middle(sample, limit(sample), loaded.processor.tokenizer) for sample in samples]


def check_contexts(arms: Sequence[Arm], samples: Sequence[Sample]) -> None:
    """Refuse to leave out a text where a task does not tell it from the question.

    Raises:
        ValueError: names the arm and the sample.
    """
    arm = next((arm for arm in arms if arm.picture == "none"), None)
    sample = next((sample for sample in samples if not sample.context), None)
    if arm is not None and sample is not None:
        raise ValueError(
            f"{arm.name} leaves out the text that a question is about, but nothing says which part of sample "
            f"{sample.id} that is, so it would have no effect. Choose another pruner, or drop the control with "
            f"~controls.{arm.name}."
        )


def without_middle(sample: Sample, limit: int, tokenizer: Any) -> Sample:
    """The sample with at most `limit` tokens of its question, up to one that the seam may add."""
    places = tokenizer(sample.question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    if len(places) <= limit:
        return sample
    first, behind = places[limit // 2 - 1][1], places[-(limit // 2)][0]

    def moved(spans: Spans) -> Spans:
        ends = ((_moved(a, first, behind), _moved(b, first, behind)) for a, b in spans)
        return tuple((a, b) for a, b in ends if a < b)

    question = sample.question[:first] + sample.question[behind:]
    return replace(sample, question=question, spans=moved(sample.spans), context=moved(sample.context))


def _moved(place: int, first: int, behind: int) -> int:
    return place if place <= first else max(first, place - (behind - first))


def _around(sample: Sample, collate: Collate) -> int:
    """Tokens that stand around a question, and one to spare for the seam."""
    bare = replace(sample, question="a", context=(), spans=())
    return int(collate([bare]).inputs["attention_mask"].sum())
