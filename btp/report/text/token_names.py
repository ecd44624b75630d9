"""Names of a run's tokens (prompt tokens, patches, tubes) in texts written for visual tokens."""

from __future__ import annotations

from collections.abc import Iterable

VISUAL = "visual tokens"
PROMPT = "prompt tokens"  # of text models


def in_unit(text: str, unit: str) -> str:
    """The text with another name for visual tokens."""
    if unit == VISUAL:
        return text
    words = text.replace(VISUAL, unit).replace(VISUAL.capitalize(), unit.capitalize())
    return words.replace("visual FLOPs", f"FLOPs of {unit}")


def common(units: Iterable[str]) -> str:
    """Common name of the tokens of several runs."""
    found = set(units)
    return found.pop() if len(found) == 1 else "tokens"
