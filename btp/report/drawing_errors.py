"""Errors that a page survives: a figure or a sample's pictures that could not be drawn."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from btp.results.disk import CannotWrite


class Spared:
    """Collects what could not be drawn, and warns of it.

    Attributes:
        said: a sentence for each.
    """

    def __init__(self) -> None:
        self.said: list[str] = []

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        """Let this part fail: it is missing then, and `said` has why."""
        try:
            yield
        except CannotWrite:
            raise  # the disk is full: the next part would not get further
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            why = reason if isinstance(error, ValueError | OSError) and reason else f"{type(error).__name__}: {reason}"
            self.said.append(f"{what} is missing: {why}")
            warnings.warn(self.said[-1], stacklevel=3)
