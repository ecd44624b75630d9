"""`python -m btp.dashboard PROJECT`: lays out a W&B workspace for the runs that run.py logged there.

Without a login or a network the layout is written to a file instead, and the same command publishes it later.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from btp.report.terminal import settle_locale, settle_output
from btp.results.atomic import write_json
from btp.results.disk import make_folder
from btp.runner.messages import say
from btp.runner.tracking.wandb_session import logged_in, silence
from btp.runner.tracking.wandb_workspace import abilities, default_entity, publish, spec, workspace

OUT = Path("dashboard.json")


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Returns:
        Exit code: 0 where the workspace is published or written, 2 where it could not be laid out.
    """
    settle_output()
    parser = argparse.ArgumentParser(prog="python -m btp.dashboard", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("project", metavar="PROJECT", help="in W&B, as logger.project")
    parser.add_argument("--entity", default="", help="user or team that the project belongs to")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"write the layout there; {OUT} where it stays here")
    parser.add_argument("--runs", type=Path, default=Path("outputs"), help="run folders whose abilities get bars")
    parser.add_argument("--ability", nargs="+", default=[], metavar="NAME", help="abilities that get bars instead")
    given = parser.parse_args(arguments)
    reason = silence() if logged_in() else "no W&B login is found (`wandb login`, or WANDB_API_KEY)"
    entity = given.entity
    try:
        if reason is None and not entity:
            entity = default_entity()
    except ValueError as error:
        reason = str(error)
    try:
        space = workspace(given.project, entity, given.ability or abilities(given.runs))
    except ValueError as error:
        say(error)
        return 2
    if reason is None:
        try:
            print(publish(space))
        except ValueError as error:
            reason = str(error)
    out = given.out or (OUT if reason else None)
    if out is not None:
        try:
            make_folder(out.parent)
            write_json(out, spec(space))
        except OSError as error:
            say(error)
            return 2
        print(f"layout: {out}")
    if reason:
        print(f"not published: {reason}. The same command publishes it where that is settled.")
    return 0


if __name__ == "__main__":
    settle_locale()
    sys.exit(main())
