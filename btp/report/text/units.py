"""What the tokens of a run are called, in texts that are written for visual tokens."""

from __future__ import annotations

from collections.abc import Iterable

VISUAL = "visual tokens"


def in_unit(text: str, unit: str) -> str:
    """The text, said of tokens that are called otherwise."""
    if unit == VISUAL:
        return text
    words = text.replace(VISUAL, unit).replace(VISUAL.capitalize(), unit.capitalize())
    return words.replace("visual FLOPs", f"FLOPs of {unit}")


def common(units: Iterable[str]) -> str:
    """What tokens of several runs are called together."""
    found = set(units)
    return found.pop() if len(found) == 1 else "tokens"
