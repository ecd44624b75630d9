"""A sweep as a whole: where its cells stand, and their comparison at its end."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from btp.runner.cells import BEYOND, DIED, FAILED, FINISHED, OPEN, RUNNING, Cell, Cells
from btp.runner.grouped import logger_of
from btp.runner.launch import FAILED as FAILED_CODE

LOOKS = {OPEN: "dim", FINISHED: "green", RUNNING: "cyan", FAILED: "red", DIED: "red", BEYOND: "yellow"}


class Sweep:
    """The cells below a sweep's folder.

    Args:
        folder: where the comparison goes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cells, self.cells_study = Cells(folder).read(), Cells(folder).study()

    def end(self) -> int:
        """Print and write one comparison of all cells, those that did not finish with their reason.

        Returns:
            1 where a cell is not finished for another reason than a budget out of reach, 0 otherwise.
        """
        finished = [Path(cell.folder) for cell in self.cells if cell.state == FINISHED and cell.folder]
        other = [cell for cell in self.cells if cell.state != FINISHED]
        left = [(cell.words, _why(cell)) for cell in other]
        code = FAILED_CODE if any(cell.state != BEYOND for cell in other) else 0
        if finished:
            code = max(code, self._compare(list(dict.fromkeys(finished)), left))
            code = max(code, self.study(list(dict.fromkeys(finished)), left))
        self._track()
        if left:
            lines = [f"{words}: {reason}" for words, reason in left]
            print(f"\n{len(left)} run(s) did not finish:", *lines, sep="\n  ", file=sys.stderr)
        if any(cell.state in (DIED, FAILED, RUNNING) for cell in other):
            print(f"\nto go on: python -m btp.sweep resume {self.folder}", file=sys.stderr)
        if not self.cells:
            print(f"error: no cell of the sweep in {self.folder} has begun", file=sys.stderr)
            code = FAILED_CODE
        return code

    def status(self) -> Table:
        """How far each cell is."""
        counts = Counter(cell.state for cell in self.cells)
        said = ", ".join(f"{n} {state}" for state, n in counts.items()) or "none has begun"
        table = Table(title=f"{self.folder}: {said}", title_justify="left", box=SIMPLE)
        for name in ("cell", "state", "starts", "where", "cell's own words", "run folder, or why not"):
            table.add_column(name, overflow="fold")
        shared = set.intersection(*(set(cell.words.split()) for cell in self.cells)) if self.cells else set()
        for cell in self.cells:
            where = f"{cell.host} {cell.pid}" + (f", job {cell.job}" if cell.job else "")
            own = " ".join(word for word in cell.words.split() if word not in shared)
            told = Path(cell.folder).name if cell.state == FINISHED and cell.folder else cell.reason.split(". ")[0]
            state = f"[{LOOKS[cell.state]}]{cell.state}[/]"
            table.add_row(str(cell.number), state, str(cell.starts), where, escape(own), escape(told))
        return table

    def study(self, finished: list[Path], left: list[tuple[str, str]]) -> int:
        """Write figure and table of the study that the sweep makes, if any; returns the exit code."""
        asked = self.cells_study
        if asked is None:
            return 0
        from btp.report.studies.write import write_study  # late, as above

        try:
            written = write_study(asked, finished, self.folder, left)
        except (ValueError, OSError) as error:
            print(f"error: the study {asked['name']} cannot be made: {error}", file=sys.stderr)
            return FAILED_CODE
        for path in written:
            print(path)
        return 0

    def _track(self) -> None:
        if logger_of(self.folder) is not None:
            from btp.runner.tracker_sweep import track_sweep  # late, as above

            track_sweep(self.folder, self.cells)

    def _compare(self, finished: list[Path], left: list[tuple[str, str]]) -> int:
        from btp.report.gather import compare  # late: it draws, and a single run needs none of it here

        try:
            table, paths = compare(finished, left, self.folder)
        except (ValueError, OSError) as error:
            print(f"error: the runs cannot be compared: {error}", file=sys.stderr)
            return FAILED_CODE
        console = Console()
        console.print()
        console.print(table)
        for path in paths:
            console.print(str(path), soft_wrap=True, highlight=False)
        return 0


def _why(cell: Cell) -> str:
    return f"still running on {cell.host}" if cell.state == RUNNING else cell.reason or cell.state
