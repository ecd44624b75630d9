"""Refuses eviction without effect, where no decode step follows the prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from btp.models.loading.load import Loaded
from btp.runner.arms import Arm
from btp.schedules.slots import chooses_slots
from btp.tasks.sample import Sample


def check_effect(arms: Iterable[Arm], samples: Sequence[Sample], loaded: Loaded) -> None:
    """Refuse eviction where all answers have one token, which comes from attention in front of the eviction.

    Raises:
        ValueError: an arm chooses slots of the K/V cache, and every choice of every sample is one token.
    """
    acting = [arm for arm in arms if chooses_slots(arm.schedule)]
    choices = [getattr(sample, "continuations", ()) for sample in samples]
    if not acting or not all(choices):
        return
    texts = [text for each in choices for text in each]
    if all(len(ids) <= 1 for ids in loaded.processor.tokenizer(texts, add_special_tokens=False)["input_ids"]):
        raise ValueError(
            f"pruner {acting[0].name!r} evicts from the K/V cache behind the prompt, but every choice of this task is "
            "one token, which the prompt's own forward scores before anything leaves: eviction would have no effect. "
            "Choose a task with longer choices or with generated answers, or only methods that prune between layers."
        )
