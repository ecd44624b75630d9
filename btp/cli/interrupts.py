"""Ctrl-C: ends a command without a traceback, at once while it still imports. Standard library only."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType, TracebackType

STOPPED = 130  # exit code of what an interrupt ends, as shells have it


def end_quietly() -> None:
    """Let an interrupt end this process without a traceback. Call it before a command imports what it needs."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # which a shell asks of what runs in the background
        return
    signal.signal(signal.SIGINT, _interrupted)
    sys.excepthook = _ended


def _interrupted(number: int, frame: FrameType | None) -> None:
    """Leave at once inside an import, which libraries answer with errors of their own; else unwind."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os._exit(STOPPED)
        frame = frame.f_back
    raise KeyboardInterrupt


def _ended(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Python's own way of an error that ends the process, but for an interrupt, by which it ends in any case."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
