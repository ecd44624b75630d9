"""Natural order of names that differ in their numbers alone."""

import re
from collections.abc import Iterable

_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def natural_order(names: Iterable[str]) -> list[str]:
    """Different names as they come; by their numbers where nothing else tells them apart ("750 words, 50%")."""
    found = list(dict.fromkeys(names))
    if len({_NUMBER.sub("#", name) for name in found}) > 1:
        return found
    return sorted(found, key=lambda name: [float(number) for number in _NUMBER.findall(name)])
