"""What a message shows of a text that may be as long as a picture."""

from __future__ import annotations

import reprlib

MOST, PATH, BRIEF = 120, 200, 60  # characters of a text, of one that may be a path, and of a value


def short(value: object, most: int = MOST) -> str:
    """A text on one line, cut in its middle where it is long."""
    text = " ".join(str(value).split())
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]}...{text[-half:]}"


_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxlist, _BRIEF.maxdict, _BRIEF.maxstring, _BRIEF.maxother = 3, 4, 4, 60, 60


def brief(value: object) -> str:
    """A value as Python writes it, on one short line, however long or deep it is."""
    return short(_BRIEF.repr(value), BRIEF)
