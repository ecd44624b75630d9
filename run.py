"""Entry point: composes the config and hands it to the runner. `python run.py --help` shows what can be set."""

import os
import signal
import sys

if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # which a shell asks of what runs in the background
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # until main listens: imports take a second

try:
    from btp.cli.run import main
    from btp.report.terminal import settle_locale
except ModuleNotFoundError as error:
    if str(error.name).startswith("btp"):
        raise
    sys.exit(f"error: {error}. Activate the environment: source .venv/bin/activate (`make setup` makes it).")

if __name__ == "__main__":
    settle_locale()
    main()
