"""`btp cite METHOD...`: BibTeX of the papers of methods, and of this framework behind them."""

from __future__ import annotations

import argparse
import sys

from btp.api.catalogue import citation
from btp.report.terminal import settle_locale, settle_output
from btp.results.shipped import VERSION
from btp.runner.messages import say

OWN = f"@software{{btp,\n  title   = {{btp: experiment framework for token pruning}},\n  version = {{{VERSION}}},\n}}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Returns:
        Exit code: 0, or 2 where a method has no paper.
    """
    settle_output()
    parser = argparse.ArgumentParser(prog="btp cite", description=(__doc__ or "").strip())
    parser.add_argument("methods", nargs="+", metavar="METHOD", help="name of a pruner's yaml, as fastv")
    given = parser.parse_args(arguments)
    try:
        found = [citation(method) for method in given.methods]
    except ValueError as error:
        say(error)
        return 2
    print(*dict.fromkeys([*found, OWN]), sep="\n\n")
    return 0


if __name__ == "__main__":
    settle_locale()
    sys.exit(main())
