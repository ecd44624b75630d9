"""`python -m btp.explain RUN SAMPLE`: which visual tokens of a sample stayed at each stage, why, and what was answered.

The sample is answered again, with and without pruning, by the model and the stages of the run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from btp.report.pages.explain_page import write_life
from btp.report.pages.explain_terminal import ScreenLife
from btp.report.terminal import console, settle_locale, settle_output
from btp.runner.messages import say


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Returns:
        Exit code: 0 where the run kept and computed the same, 1 where it did otherwise, 2 where there is nothing to
            explain.
    """
    settle_output()
    parser = argparse.ArgumentParser(prog="python -m btp.explain", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder, as run.py printed it")
    parser.add_argument(
        "sample", metavar="SAMPLE", help="id of a sample in the report, or its number: 3 of test-0-000003"
    )
    parser.add_argument("--arm", metavar="NAME", help="an arm of the run with stages; its method where none is named")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the same as an HTML page, scores included")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="execute code outside btp that the run's config.yaml names: of your own runs",
    )
    given = parser.parse_args(arguments)
    from btp.runner.explain.answer import explain  # late: torch and transformers, which --help does without

    try:
        life = explain(given.run, given.sample, given.arm, given.trust)
        page = write_life(life, given.page) if given.page is not None else None
    except (ValueError, OSError, RuntimeError) as error:
        say(error)
        return 2
    except KeyError as error:
        say(f"{given.run} lacks {error}, so it is of an older release or broken. Run its command again.")
        return 2
    screen = console()
    screen.print(ScreenLife(life))
    if page is not None:
        screen.print(f"page: {page}", soft_wrap=True, highlight=False)
    return int(not life.same)


if __name__ == "__main__":
    settle_locale()
    sys.exit(main())
