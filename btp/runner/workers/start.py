"""Starts a worker: `python -m btp.runner.workers.start REQUEST.json`. An interrupt while it imports ends it quietly."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """As `btp.runner.run.main`, whose imports take seconds."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # one that came while Python started comes now
    from btp.report.terminal import settle_locale, settle_output

    settle_locale()
    settle_output()
    from btp.runner.run import main as work

    return work()


if __name__ == "__main__":
    sys.exit(main())
