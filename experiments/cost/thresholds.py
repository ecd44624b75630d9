"""Break-even of pruning over output length, prompt length and batch size, from the times of two arms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from btp.measure.roofline import Times


@dataclass(frozen=True)
class Outputs:
    """Numbers of output tokens for which pruning pays.

    Attributes:
        least: the smallest; None where there is none.
        most: the largest; None where there is no end, or nothing pays.
    """

    least: int | None
    most: int | None = None

    def __str__(self) -> str:
        if self.least is None:
            return "at no number of output tokens"
        if self.most is None:
            return "at any number of output tokens" if self.least == 1 else f"from {self.least} output tokens on"
        return f"from {self.least} to {self.most} output tokens"


def outputs_that_pay(unpruned: Times, pruned: Times, worth: float = 1.0) -> Outputs:
    """Numbers of output tokens at which the unpruned model takes at least `worth` times as long.

    Both times are straight lines in the number of tokens, so those that pay are one interval.

    Args:
        worth: the speed-up from the picture to the last token that is asked for; 1 asks for no loss.

    Raises:
        ValueError: worth is below 1, or a time is negative.
    """
    if worth < 1:
        raise ValueError(f"worth is {worth:g}, a speed-up below 1. Ask for 1 (no loss) or more.")
    if min(unpruned.first, unpruned.per_token, pruned.first, pruned.per_token) < 0:
        raise ValueError(
            "A time is negative, as a difference of two measurements can be in noise. Measure more rounds."
        )
    start = unpruned.first - worth * pruned.first  # left over at the first token
    slope = unpruned.per_token - worth * pruned.per_token  # and by each further one
    if start >= 0:
        return Outputs(1, None if slope >= 0 else 1 + math.floor(start / -slope))
    return Outputs(1 + math.ceil(-start / slope)) if slope > 0 else Outputs(None)


def speedup(unpruned: Times, pruned: Times, output: int) -> float:
    """Speed-up of a whole answer of `output` tokens; above 1 pruning is faster."""
    return unpruned.until(output) / pruned.until(output)


def selection_allowed(unpruned: Times, pruned: Times, output: int) -> float:
    """Seconds that choosing tokens may take in all, before an answer of `output` tokens is slower than unpruned."""
    return pruned.selection + unpruned.until(output) - pruned.until(output)


def turning_point(pays: Callable[[int], bool], least: int, most: int) -> tuple[int | None, bool]:
    """Bisection for the whole number from `least` to `most` at which `pays` changes; it should change once.

    Returns:
        (the first number behind the change, whether it pays from there on); (None, whether it pays) where both
        ends agree.
    """
    begins, ends = pays(least), pays(most)
    if begins == ends:
        return None, begins
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if pays(middle) == begins else (least, middle)
    return most, ends


def measured_times(costs: Mapping[str, Any]) -> Times:
    """Medians of one arm of a cost.json; what is left of the time to the first token is its prefill.

    Raises:
        ValueError: the arm has no prefill or per-token latency.
    """
    for key in ("prefill_ms", "per_token_ms"):
        if not costs.get(key):
            raise ValueError(f"The costs hold no {key}. Measure them with experiments.cost.measure or run.py.")
    vision, selection = ((costs.get(key) or {"median": 0.0})["median"] for key in ("vision_ms", "selection_ms"))
    rest = max(0.0, costs["prefill_ms"]["median"] - vision - selection)
    return Times(*(ms / 1e3 for ms in (vision, selection, rest, costs["per_token_ms"]["median"])))
