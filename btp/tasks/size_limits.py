"""Size limits of a sample, checked before any of it is decoded or tokenised."""

from __future__ import annotations

from collections.abc import Sequence

from btp.tasks.files.images import picture_sizes
from btp.tasks.sample import Sample
from btp.tasks.shown import short

MOST_CHARACTERS = 1_000_000  # of a question; the longest contexts take about as many
MOST_PIXELS = 500_000_000  # of pictures that are decoded together: 1.5 GB


def check_questions(samples: Sequence[Sample]) -> None:
    """Refuse a question that no context can hold.

    Raises:
        ValueError: names the sample, its length and the bound.
    """
    for sample in samples:
        if len(sample.question) > MOST_CHARACTERS:
            raise ValueError(
                f"sample {short(sample.id, 60)}: its question has {len(sample.question):,} characters, more than the "
                f"{MOST_CHARACTERS:,} that are taken. Shorten the question, or leave the sample out."
            )


def sizes_within(samples: Sequence[Sample]) -> list[list[tuple[int, int]]]:
    """(height, width) of the pictures of every sample, as the heads of their files say.

    Raises:
        ValueError: the pictures of one sample have too many pixels together; names it, them and the bound.
    """
    sizes = [picture_sizes(sample.images) for sample in samples]
    for sample, mine in zip(samples, sizes, strict=True):
        if pixels(mine) > MOST_PIXELS:
            raise ValueError(
                f"sample {short(sample.id, 60)}: its {len(mine)} pictures have {pixels(mine) // 10**6:,} million "
                f"pixels together, more than the {MOST_PIXELS // 10**6} million that are taken. Save them smaller, "
                "show fewer, or leave the sample out."
            )
    return sizes


def pixels(sizes: Sequence[tuple[int, int]]) -> int:
    """Pixels of pictures of these sizes together."""
    return sum(height * width for height, width in sizes)
