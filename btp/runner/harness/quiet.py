"""Keeps a harness quiet, and says what went wrong in it in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO


def reason_of(error: BaseException) -> str:
    """What went wrong first, in one line, where a harness tried several times or wrapped it."""
    while (first := _before(error)) is not None:
        error = first
    return " ".join(str(error).split())[:300].rstrip(". ") or type(error).__name__


def _before(error: BaseException) -> BaseException | None:
    """The error that this one was raised for: of the last attempt of tenacity's, or its cause."""
    attempt = getattr(error, "last_attempt", None)
    return error.__cause__ if attempt is None else attempt.exception()


@contextmanager
def silent() -> Iterator[None]:
    """Hold back progress bars of a harness and of what it loads data with."""
    with redirect_stderr(StringIO()):
        yield
