"""Visual tokens of each sample, as its processor estimates and its model counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from btp.models.lvlm import LVLM
from btp.runner.evaluation.data import Collate
from btp.schedules.meet import pictures_of
from btp.tasks.sample import Sample


def visual_totals(
    samples: Sequence[Sample], estimates: Sequence[int], host: LVLM, collate: Collate
) -> tuple[list[int], int]:
    """Visual tokens of each sample, and pictures of one, the most.

    Estimates by the processor are taken where they are right for the smallest and the largest; where they are not
    (some count marks around a picture, some cannot count), one sample of each estimate is counted.

    Args:
        estimates: `visual_tokens` of the samples, 0 where there are none.
        collate: makes inputs of samples.
    """
    shown: dict[int, Sample] = {}
    for sample, estimate in zip(samples, estimates, strict=True):
        if estimate and (estimate not in shown or sample.id < shown[estimate].id):  # whatever order they come in
            shown[estimate] = sample
    counted = {estimate: _count(shown[estimate], host, collate) for estimate in _ends(sorted(shown))}
    if any(found[0] != estimate for estimate, found in counted.items()):
        counted |= {
            estimate: _count(sample, host, collate) for estimate, sample in shown.items() if estimate not in counted
        }
    totals = {estimate: found[0] for estimate, found in counted.items()}
    pictures = max((found[1] for found in counted.values()), default=1)
    return [totals.get(estimate, estimate) for estimate in estimates], pictures


def text_totals(samples: Sequence[Sample], collate: Collate) -> list[int]:
    """Tokens of each sample's prompt that may be withdrawn: all but the last."""
    return [int(collate([sample]).inputs["attention_mask"].sum()) - 1 for sample in samples]


def _ends(ordered: Sequence[int]) -> list[int]:
    return list(dict.fromkeys((*ordered[:1], *ordered[-1:])))


def visual_count(host: Any, inputs: Mapping[str, Tensor]) -> int:
    """Visual tokens of the first row of a model's inputs."""
    return int((host.visual_mask(inputs) if "llm" in host.towers else host.layout(inputs).visual)[0].sum())


def _count(sample: Sample, host: LVLM, collate: Callable[..., object]) -> tuple[int, int]:
    inputs = collate([sample]).inputs  # type: ignore[attr-defined]
    return visual_count(host, inputs), pictures_of(inputs)
