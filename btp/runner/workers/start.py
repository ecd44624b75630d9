"""Starts a worker: `python -m btp.runner.workers.start REQUEST.json`. An interrupt while it imports ends it quietly."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

STOPPED = 130  # as btp.runner.workers.launch has it, whose import takes longer


def _leave(number: int, frame: Any) -> None:
    os._exit(STOPPED)


def main() -> int:
    """As `btp.runner.run.main`, whose imports take seconds."""
    signal.signal(signal.SIGINT, _leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # one that came while Python started comes now
    from btp.report.terminal import settle_locale, settle_output

    settle_locale()
    settle_output()
    from btp.runner.run import main as work

    signal.signal(signal.SIGINT, signal.default_int_handler)
    return work()


if __name__ == "__main__":
    sys.exit(main())
