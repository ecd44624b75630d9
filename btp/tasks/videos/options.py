"""Options of multiple choice as the layouts of video benchmarks write them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase

KEY = "task.path"
_LETTERED = re.compile(r"^\s*\(?([A-Z])[.)]\s*")


def letter(answer: str, choices: Sequence[str]) -> str:
    """The letter of the option whose text an answer is; the answer where it is none's alone."""
    return ascii_uppercase[choices.index(answer)] if list(choices).count(answer) == 1 else answer


def bare_options(options: Sequence[str]) -> tuple[str, ...]:
    """Texts without the letters `A.`, `B.`, ... where all of them have theirs."""
    found = [_LETTERED.match(option) for option in options]
    if all(m and m[1] == ascii_uppercase[i] for i, m in enumerate(found)):
        return tuple(_LETTERED.sub("", option).strip() for option in options)
    return tuple(options)
