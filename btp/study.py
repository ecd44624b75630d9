"""`python -m btp.study FOLDER`: the figure and the table of a study, from the runs of its sweep.

A sweep of an experiment with a study ends in them already; this makes them anew, from its folder or, by --name, from
any run folders, and with --out puts them beside a page of their own.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from btp.cli.experiments import study_of
from btp.report.studies.write import Written, typed, write_study
from btp.report.terminal import settle_locale, settle_output
from btp.results.shipped import CONF, PROGRAM
from btp.runner.messages import say
from btp.runner.sweeps.cells import FINISHED, Cells


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Returns:
        Exit code: 0 where figure and table are written, 2 where the runs cannot make them.
    """
    settle_output()
    parser = argparse.ArgumentParser(prog="python -m btp.study", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of a sweep; with --name, of any runs")
    parser.add_argument("--name", help="the experiment whose study is made; by default the sweep's own")
    parser.add_argument("--out", type=Path, help="where figure and table go; by default the first folder")
    given = parser.parse_args(arguments)
    try:
        written = _write(given.folders, given.name, given.out or given.folders[0])
    except (ValueError, OSError) as error:
        say(error)
        return 2
    print(written.question, *written.said, "", *written.paths, sep="\n")
    return 0


def _write(folders: list[Path], name: str | None, out: Path) -> Written:
    runs: list[Path] = []
    failed, commands, study = [], [], None
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}. Name the one that `{PROGRAM} -m ...` printed.")
        if not (folder / "sweep.json").is_file():
            runs.append(folder)
            continue
        sweep = Cells(folder)
        study = study or sweep.study()
        commands.append(typed(sweep.command()))
        for cell in sweep.read():
            done = cell.state == FINISHED and cell.folder
            runs += [Path(cell.folder)] if done and cell.folder else []
            failed += [] if done else [(cell.words, cell.reason or cell.state)]
    if name is not None:
        study = study_of(CONF, name)
    if study is None:
        raise ValueError(f"{folders[0]} is not the folder of a study's sweep. Name the study: --name depth_sweep.")
    return write_study(study, list(dict.fromkeys(runs)), out, failed, "\n".join(commands))


if __name__ == "__main__":
    settle_locale()
    sys.exit(main())
