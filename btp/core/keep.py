"""How many tokens a `keep` stands for: the one place where shares become counts."""

from __future__ import annotations

from typing import overload

from torch import Tensor, float64

Keep = int | float | str
FIT = "fit"


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
        ValueError: keep is "fit" and was not solved, or is out of range.
    """
    check_keep(keep, "keep")
    if isinstance(keep, str):
        raise ValueError("keep: fit has no count before it is solved. Call Schedule.solve_fit with a budget first.")
    if isinstance(total, Tensor):
        if isinstance(keep, int):
            return total.clamp(max=keep)
        return (total.to(float64) * keep + 1e-6).floor().to(total.dtype)
    return min(keep, total) if isinstance(keep, int) else int(total * keep + 1e-6)


def check_keep(keep: object, key: str) -> None:
    """Refuse what is not a keep; `key` is the config key for the message.

    Raises:
        ValueError: not an int >= 0, a float in [0, 1] or "fit".
    """
    if isinstance(keep, int) and not isinstance(keep, bool) and keep >= 0:
        return
    if isinstance(keep, float) and 0.0 <= keep <= 1.0:
        return
    if keep == FIT:
        return
    raise ValueError(
        f"{key} is {keep!r}. Write an int >= 0 (tokens per sample), a float in [0, 1] (share of the original "
        "visual tokens) or fit (solved from the budget)."
    )
