"""Shortened texts for messages, and texts that can be names."""

from __future__ import annotations

import re
import reprlib

LONGEST = 100  # characters of a name
NO_NAME = (
    f"but a name has letters, digits, _, - and . only, begins with no . or -, and has at most {LONGEST} characters"
)
MOST, PATH, BRIEF = 120, 200, 60  # characters of a text, of one that may be a path, and of a value


def is_name(text: object) -> bool:
    """Whether folders and files can be called so, without leading elsewhere."""
    return isinstance(text, str) and len(text) <= LONGEST and re.fullmatch(r"\w[\w.-]*", text) is not None


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
