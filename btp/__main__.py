"""`btp WORDS...`, also as `python -m btp` and `python run.py`: a run, or `btp report FOLDER` and the other commands."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from btp.cli.interrupts import end_quietly

HERE = Path(__file__).parent


def commands() -> list[str]:
    """What `python -m btp.NAME` runs: the modules beside this one, and rooms that can be run."""
    modules = [path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_")]
    return sorted([*modules, *(path.parent.name for path in HERE.glob("*/__main__.py"))])


def main() -> None:
    """Run the command line."""
    end_quietly()
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    try:
        if word in commands():
            sys.argv[:2] = [f"{sys.argv[0]} {word}"]
            runpy.run_module(f"btp.{word}", run_name="__main__")
            return
        if word.isidentifier():
            sys.exit(f"error: there is no command {word}. Commands: {', '.join(commands())}; a run takes key=value.")
        from btp.cli.run import main as run
        from btp.report.terminal import settle_locale
    except ModuleNotFoundError as error:
        if str(error.name).startswith("btp"):
            raise
        sys.exit(f"error: {error}. Activate the environment: source .venv/bin/activate (`make setup` makes it).")
    settle_locale()
    run()


if __name__ == "__main__":
    main()
