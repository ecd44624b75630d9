"""Processor calls whose errors name the sample; unusual pictures are tried before the first answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from PIL import Image

from btp.runner.out_of_memory import out_of_memory
from btp.tasks.files.images import picture_sizes
from btp.tasks.sample import Sample

T = TypeVar("T")
THIN, LONG = 28, 20  # pixels of the shorter side, and times that the longer has them, from which a picture is unusual
TRIED = 16  # of the thinnest and of the longest pictures


def processed(
    make: Callable[..., T],
    samples: Sequence[Sample],
    prompts: Sequence[Any],
    pictures: Sequence[Sequence[Image.Image]],
    *more: Sequence[Any],
) -> T:
    """What a processor makes of samples together.

    Args:
        make: (prompts, pictures of each, ...) -> inputs.
        samples: Samples for messages.
        more: What else each sample shows, handed on to `make`.

    Raises:
        ValueError: it makes nothing of one of them; says which, and why.
    """

    try:
        return make(prompts, pictures, *more)
    except Exception as error:
        if out_of_memory(error):
            raise
        for sample, prompt, mine, *others in zip(samples, prompts, pictures, *more, strict=True):
            try:
                make([prompt], [mine], *([other] for other in others))
            except Exception as refused:
                if out_of_memory(refused):
                    raise
                raise ValueError(_said(sample, mine, refused)) from refused
        raise


def try_unusual(samples: Sequence[Sample], collate: Callable[[Sequence[Sample]], Any]) -> None:
    """Make inputs of the thinnest and the longest pictures, which some processors refuse.

    Raises:
        ValueError: one is refused; says of which sample.
    """
    found: dict[tuple[int, int], Sample] = {}
    for sample in samples:
        for height, width in picture_sizes(sample.images):
            if min(height, width) < THIN or max(height, width) > LONG * min(height, width):
                found.setdefault((height, width), sample)
    thin = sorted(found, key=min)[:TRIED]
    long = sorted(found, key=lambda size: -max(size) / max(min(size), 1))[:TRIED]
    for sample in {found[size].id: found[size] for size in (*thin, *long)}.values():
        collate([sample])


def _said(sample: Sample, pictures: Sequence[Image.Image], error: Exception) -> str:
    sizes = ", ".join(f"{picture.width} x {picture.height}" for picture in pictures)
    shown = f"whose pictures have {sizes} pixels" if len(pictures) > 1 else f"whose picture has {sizes} pixels"
    reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
    return (
        f"sample {sample.id}, {shown if pictures else 'which shows no picture'}, is refused by the model's processor: "
        f"{reason}. Leave the sample out, or change its {'picture' if pictures else 'question'}."
    )
