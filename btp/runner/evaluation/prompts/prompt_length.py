"""Refuses prompts that are longer than what the model reads, before the first answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from btp.models.loading.load import Loaded
from btp.tasks.sample import Sample

UNSET = 10**9  # what tokenizers that name no limit have is far above


def context_of(loaded: Loaded) -> tuple[int, str] | None:
    """Tokens that a model reads at most, and what says so; None where nothing does."""
    text = loaded.host.model.config.get_text_config()
    found = [
        (getattr(text, "max_position_embeddings", None), "max_position_embeddings of its config.json"),
        (
            getattr(loaded.processor.tokenizer, "model_max_length", None),
            "model_max_length of its tokenizer_config.json",
        ),
    ]
    known = [(limit, where) for limit, where in found if isinstance(limit, int) and 0 < limit < UNSET]
    return min(known) if known else None


def check_lengths(
    samples: Sequence[Sample], totals: Sequence[int], loaded: Loaded, collate: Callable[[Sequence[Sample]], Any]
) -> None:
    """Refuse a sample whose prompt the model cannot read to its end.

    Prompts are made only of samples that may be too long: a token has one byte of a question at least.

    Args:
        totals: visual tokens of each sample.
        collate: makes inputs of samples.

    Raises:
        ValueError: names the sample, its tokens and the limit.
    """
    context = context_of(loaded)
    if context is None or not samples:
        return
    limit, where = context

    def tokens(i: int) -> int:
        return int(collate([samples[i]]).inputs["input_ids"].shape[1])

    shortest = min(range(len(samples)), key=lambda i: len(samples[i].question))
    around = tokens(shortest) - totals[shortest]  # of the template
    room = [limit - around - total for total in totals]
    doubtful = [i for i, sample in enumerate(samples) if len(sample.question.encode()) > room[i]]
    for i in sorted(doubtful, key=lambda i: room[i] - len(samples[i].question)):
        words = len(loaded.processor.tokenizer(samples[i].question, add_special_tokens=False)["input_ids"])
        if words > room[i] and (found := tokens(i)) > limit:
            raise ValueError(
                f"sample {samples[i].id}: its prompt has {found:,} tokens, {totals[i]:,} of them visual, but the model "
                f"reads {limit:,} at most ({where}). Shorten its question, show fewer or smaller pictures, or leave "
                "the sample out."
            )
