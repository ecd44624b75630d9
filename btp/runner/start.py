"""Starts a worker (`python -m btp.runner.start REQUEST.json`); an interrupt while it imports ends it without a word."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from btp.report.terminal import settle_output
from btp.runner.launch import STOPPED


def _leave(number: int, frame: Any) -> None:
    os._exit(STOPPED)


def main() -> int:
    """As `btp.runner.worker.main`, whose imports take seconds."""
    signal.signal(signal.SIGINT, _leave)
    settle_output()
    from btp.runner.worker import main as work

    signal.signal(signal.SIGINT, signal.default_int_handler)
    return work()


if __name__ == "__main__":
    sys.exit(main())
