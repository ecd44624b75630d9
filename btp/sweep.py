"""`python -m btp.sweep status|resume|table FOLDER`: where a sweep stands, going on with it, its table.

FOLDER is the one that `python run.py -m ...` printed: below outputs/multirun, or what hydra.sweep.dir said.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from btp.cli.command_words import quoted
from btp.report.terminal import console, literal, settle_locale, settle_output
from btp.results.command_line import as_line
from btp.results.shipped import PROGRAM
from btp.runner.messages import say
from btp.runner.sweeps.cells import FINISHED, Cells
from btp.runner.sweeps.summary import Sweep
from btp.runner.targets import chooses_code
from btp.tasks.shown import short


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Returns:
        Exit code: 0 where all is well, 1 where a cell is not finished, 2 where the folder is no sweep's.
    """
    settle_output()
    doing = ("status", "resume", "table")
    parser = argparse.ArgumentParser(prog="python -m btp.sweep", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("do", choices=doing, metavar="|".join(doing), help="show the cells, run what is open, compare")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of the sweep")
    parser.add_argument("words", nargs="*", help="with resume: further words of the command line, such as a launcher")
    parser.add_argument("--trust", action="store_true", help="with resume: also where the sweep's command names code")
    given = parser.parse_intermixed_args(arguments)
    try:
        command, sweep = Cells(given.folder).command(), Sweep(given.folder)
    except ValueError as error:
        say(error)
        return 2
    if given.do == "resume":
        named = None if given.trust else chooses_code(command)
        if named is not None:
            say(
                f"the command in {given.folder / 'sweep.json'} has the word {short(named)}, which can choose code from "
                "outside btp. If the sweep is yours, or you trust who made it, add --trust."
            )
            return 2
        return _resume(given.folder, command, given.words)
    if given.words:
        parser.error(f"{given.do} takes no further words, got: {' '.join(given.words)}")
    if given.do == "table":
        try:
            return sweep.end()
        except ValueError as error:
            say(error)
            return 2
    screen = console()
    screen.print(literal(sweep.counts(), "italic"), soft_wrap=True)
    screen.print(sweep.status())
    screen.print(f"{PROGRAM} {as_line(command)}", soft_wrap=True, highlight=False)
    return int(any(cell.state != FINISHED for cell in sweep.cells))


def _resume(folder: Path, command: list[str], more: list[str]) -> int:
    """The sweep's own command again, in its own folder: what is finished is recognised, the rest goes on."""
    from btp.cli.run import main as run

    changed = {word.split("=", 1)[0] for word in more}
    kept = [word for word in command if word.split("=", 1)[0] not in {*changed, "hydra.sweep.dir"}]
    sys.argv = [sys.argv[0], *kept, *more, quoted("hydra.sweep.dir", folder)]
    try:
        run()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


if __name__ == "__main__":
    settle_locale()
    sys.exit(main())
