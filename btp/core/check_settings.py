"""Checks of settings. Each takes the config key, the value found there and, for the message, what to write instead."""

from __future__ import annotations

from collections.abc import Collection
from math import inf, isfinite, nan
from typing import Any


def check_one_of(key: str, value: object, known: Collection[Any]) -> None:
    """Refuse a value that is none of the known ones; a ValueError names them all."""
    if value not in known:
        raise ValueError(f"{key} is {value!r}. Choose from: {', '.join(map(str, known))}.")


def check_flag(key: str, value: object) -> None:
    """Refuse with a ValueError what is neither true nor false."""
    if not isinstance(value, bool):
        raise ValueError(f"{key} is {value!r}. Write true or false.")


def check_whole(key: str, value: object, wanted: str, least: float = 1) -> None:
    """Refuse with a ValueError what is no int of `least` or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{key} is {value!r}. Write {wanted}.")


def check_number(
    key: str,
    value: object,
    wanted: str,
    least: float = -inf,
    most: float = inf,
    *,
    above: float = -inf,
    below: float = inf,
) -> float:
    """Refuse with a ValueError what is no finite number in the range.

    Args:
        least, most: Bounds that belong to the range.
        above, below: Bounds that do not.

    Returns:
        The value.
    """
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else nan
    if isfinite(number) and least <= number <= most and above < number < below:
        return float(number)
    raise ValueError(f"{key} is {value!r}. Write {wanted}.")
