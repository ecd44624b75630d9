"""Words of a command as one line of a shell, and back."""

import re
import shlex
from collections.abc import Iterable

_PLAIN = re.compile(r"[\w@%+:=,./\[\]^-]+")  # what shells leave alone, and Hydra's lists, which they do in practice


def as_line(words: Iterable[str]) -> str:
    """Words as they are typed: in quotes where a shell would divide or change them."""
    return " ".join(word if _PLAIN.fullmatch(word) else shlex.quote(word) for word in words)


def words_of(line: str) -> list[str]:
    """The words of a line that `as_line` wrote; of an older release's, divided at its blanks."""
    try:
        return shlex.split(line)
    except ValueError:  # a quote that is not closed
        return line.split()
