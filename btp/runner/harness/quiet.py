"""Keeps lmms-eval quiet, and says what went wrong in it in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO


def reason_of(error: BaseException) -> str:
    """What went wrong first, in one line, where lmms-eval tried several times or wrapped it."""
    while error.__cause__ is not None or getattr(error, "last_attempt", None) is not None:
        attempt = getattr(error, "last_attempt", None)
        error = attempt.exception() if attempt is not None else error.__cause__  # type: ignore[assignment]
    return " ".join(str(error).split())[:300].rstrip(". ") or type(error).__name__


def hush() -> None:
    """Let lmms-eval say nothing but errors."""
    import sys

    import lmms_eval.models  # noqa: F401  its import sets up the log
    from loguru import logger

    logger.remove()
    logger.add(sys.stderr, level="ERROR", format="lmms-eval: {message}")


@contextmanager
def silent() -> Iterator[None]:
    """Hold back progress bars of lmms-eval and of what it loads data with."""
    with redirect_stderr(StringIO()):
        yield
