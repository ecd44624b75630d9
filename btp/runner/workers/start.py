"""Starts a worker: `python -m btp.runner.workers.start REQUEST.json`. An interrupt while it imports ends it quietly."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from btp.report.terminal import settle_locale, settle_output
from btp.runner.workers.launch import STOPPED


def _leave(number: int, frame: Any) -> None:
    os._exit(STOPPED)


def main() -> int:
    """As `btp.runner.run.main`, whose imports take seconds."""
    signal.signal(signal.SIGINT, _leave)
    settle_output()
    from btp.runner.run import main as work

    signal.signal(signal.SIGINT, signal.default_int_handler)
    return work()


if __name__ == "__main__":
    settle_locale()
    sys.exit(main())
