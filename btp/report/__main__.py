"""`python -m btp.report FOLDER...`: one run folder -> its report again; several -> one table of them all."""

import argparse
import sys
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console

from btp.report.export import write_table
from btp.report.load import read_run
from btp.report.page import write_report
from btp.report.palette import LIGHT
from btp.report.screen import ScreenTable, screen_table
from btp.report.table import Table, combined_table
from btp.report.tradeoff import tradeoff


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code, 2 for a folder that is no run."""
    parser = argparse.ArgumentParser(prog="python -m btp.report", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a run folder")
    parser.add_argument("--out", type=Path, default=Path(), help="where the table of several runs goes")
    given = parser.parse_args(arguments)
    console = Console()
    try:
        if len(given.folders) == 1:
            page = write_report(given.folders[0])
            console.print(screen_table(given.folders[0]))
            written = [page]
        else:
            table = combined_table([read_run(folder) for folder in given.folders])
            written = [*write_table(table, given.out, "runs"), _write_plot(table, given.out)]
            console.print(ScreenTable(table))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console.print()
    for path in written:
        console.print(str(path), soft_wrap=True, highlight=False)
    return 0


def _write_plot(table: Table, folder: Path) -> Path:
    with matplotlib.rc_context(LIGHT.style()):
        figure = tradeoff(table, LIGHT)
        FigureCanvasAgg(figure)
        figure.savefig(folder / "runs.png", dpi=180)
    return folder / "runs.png"


if __name__ == "__main__":
    sys.exit(main())
