"""JSON parsing with a limit on nesting depth."""

from __future__ import annotations

import json
from typing import Any

LEVELS = 64  # of lists and objects in each other; what is written by programs has less than ten


def nests_deeper(value: Any, levels: int = LEVELS) -> bool:
    """Whether lists and mappings lie in each other more than so many times; one that holds itself does."""
    level = [value] if isinstance(value, list | dict) else []
    for _ in range(levels):
        inside = (v for part in level for v in (part.values() if isinstance(part, dict) else part))
        level = list({id(v): v for v in inside if isinstance(v, list | dict)}.values())
        if not level:
            return False
    return bool(level)


def json_of(text: str) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError: it is no JSON, or nested deeper than `LEVELS`.
    """
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError(f"it is nested more than {LEVELS} levels deep") from None
    if nests_deeper(found):
        raise ValueError(f"it is nested more than {LEVELS} levels deep")
    return found
