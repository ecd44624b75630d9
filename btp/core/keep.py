"""How many tokens a `keep` stands for: the one place where shares become counts, and counts tensors."""

from __future__ import annotations

import re
from typing import Any, overload

import torch
from torch import Tensor, float64

Keep = int | float | str
FIT = "fit"
_TIMES = re.compile(r"^fit\s*\*\s*((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)$")


def is_fit(keep: object) -> bool:
    """True for what a budget solves: `fit`, and `fit*X`, which is X times what the first `fit` keeps."""
    return isinstance(keep, str) and (keep == FIT or fit_times(keep) is not None)


def fit_times(keep: object) -> float | None:
    """X of `fit*X`; None for everything else, a plain `fit` too."""
    found = _TIMES.match(keep) if isinstance(keep, str) else None
    return float(found[1]) if found and float(found[1]) > 0 else None


@overload
def keep_count(keep: Keep, total: int) -> int: ...
@overload
def keep_count(keep: Keep, total: Tensor) -> Tensor: ...
def keep_count(keep: Keep, total: int | Tensor) -> int | Tensor:
    """Tokens that `keep` leaves of `total` original visual tokens.

    An int is tokens per sample, capped at `total`. A float is a share of `total`, rounded down, as the
    published methods do; 1e-6 of a token is forgiven, so that 0.29 of 100 is 29 in spite of binary fractions.

    Args:
        keep: int >= 0, or float in [0, 1].
        total: visual tokens before any pruning; an int, or an integer tensor of any shape.

    Returns:
        The count, of the type (and shape) of `total`.

    Raises:
        ValueError: keep is "fit" or "fit*X" and was not solved, or is out of range.
    """
    check_keep(keep, "keep")
    if isinstance(keep, str):
        raise ValueError(
            f"keep: {keep} has no count before it is solved. Call btp.schedules.solve.solve_fit with a budget first."
        )
    if isinstance(total, Tensor):
        if isinstance(keep, int):
            return total.clamp(max=keep)
        return (total.to(float64) * keep + 1e-6).floor().to(total.dtype)
    return min(keep, total) if isinstance(keep, int) else int(total * keep + 1e-6)


def check_keep(keep: object, key: str) -> None:
    """Refuse what is not a keep; `key` is the config key for the message.

    Raises:
        ValueError: not an int >= 0, a float in [0, 1], "fit" or "fit*X".
    """
    if isinstance(keep, int) and not isinstance(keep, bool) and keep >= 0:
        return
    if isinstance(keep, float) and 0.0 <= keep <= 1.0:
        return
    if is_fit(keep):
        return
    if isinstance(keep, str) and keep.startswith(FIT):
        raise ValueError(f"{key} is {keep!r}. Write fit, or fit*X with a number X above 0, as fit*0.5.")
    raise ValueError(
        f"{key} is {keep!r}. Write an int >= 0 (tokens per sample), a float in [0, 1] (share of the original "
        "visual tokens), fit (solved from the budget) or fit*X (X times what the first fit keeps)."
    )


def on_device(numbers: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """`torch.tensor(numbers, device=device)` without its wait, which on a GPU is for all work that is queued there.

    Args:
        numbers: Numbers that the host knows: one, or nested sequences of them.
        device: Device to put them on.
        dtype: None takes what the numbers ask for.
    """
    return torch.tensor(numbers, dtype=dtype).to(device, non_blocking=True)
