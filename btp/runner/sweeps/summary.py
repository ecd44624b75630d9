"""Status of a sweep, and the comparison of its cells at its end."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from btp.report.terminal import console, literal
from btp.results.command_line import as_line, words_of
from btp.runner.messages import say
from btp.runner.sweeps.cells import BEYOND, DIED, FAILED, FINISHED, OPEN, RUNNING, Cell, Cells
from btp.runner.tracking.groups import logger_of
from btp.runner.tracking.tracker import tracker_of
from btp.runner.workers.launch import FAILED as FAILED_CODE

if TYPE_CHECKING:
    from btp.report.studies.write import Written

LOOKS = {OPEN: "dim", FINISHED: "green", RUNNING: "cyan", FAILED: "red", DIED: "red", BEYOND: "yellow"}


class Sweep:
    """The cells below a sweep's folder.

    Args:
        folder: Folder that the comparison goes to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cells = Cells(folder).read()

    def end(self) -> int:
        """Print and write one comparison of all cells, those that did not finish with their reason.

        Returns:
            1 where a cell is not finished for another reason than a budget out of reach, 0 otherwise.
        """
        ended = [Path(cell.folder) for cell in self.cells if cell.state == FINISHED and cell.folder]
        finished = [folder for folder in ended if folder.is_dir()]
        other = [cell for cell in self.cells if cell.state != FINISHED]
        begun = [cell for cell in other if cell.state != OPEN]
        left = [(self._own(cell), _why(cell)) for cell in other]
        gone = [folder for folder in ended if folder not in finished]
        left += [(str(folder), "the folder of this finished run is gone") for folder in gone]
        code = FAILED_CODE if any(cell.state != BEYOND for cell in other) else 0
        if finished:
            study, made = self.study(list(dict.fromkeys(finished)), left)
            code = max(code, made, self._compare(list(dict.fromkeys(finished)), left, study))
        self._track()
        for folder in gone:
            print(f"\nthe folder of this finished run is gone: {folder}", file=sys.stderr)
            code = FAILED_CODE
        if begun:
            lines = [f"[{cell.number}] {self._own(cell)}: {_briefly(cell)}" for cell in begun]
            print(f"\n{len(begun)} run(s) did not finish:", *lines, sep="\n  ", file=sys.stderr)
        if len(begun) < len(other):
            print(f"\nnot finished: {len(other) - len(begun)} cell(s) not begun", file=sys.stderr)
        if any(cell.state != BEYOND for cell in other):
            print(f"\nto go on: python -m btp.sweep resume {shlex.quote(str(self.folder))}", file=sys.stderr)
        if not ended and not begun:
            print(f"error: no cell of the sweep in {self.folder} has begun", file=sys.stderr)
            code = FAILED_CODE
        return code

    def counts(self) -> str:
        """How many cells are in each state, in a line."""
        counts = Counter(cell.state for cell in self.cells)
        return f"{self.folder}: " + (", ".join(f"{n} {state}" for state, n in counts.items()) or "none has begun")

    def status(self) -> Table:
        """How far each cell is."""
        table = Table(box=SIMPLE)
        for name in ("cell", "state", "starts", "where", "cell's own words", "run folder, or why not"):
            table.add_column(name, overflow="fold")
        for cell in self.cells:
            where = f"{cell.host} {cell.pid}" + (f", job {cell.job}" if cell.job else "") if cell.starts else ""
            told = Path(cell.folder).name if cell.state == FINISHED and cell.folder else _why(cell)
            state = Text(cell.state, LOOKS[cell.state])
            table.add_row(str(cell.number), state, str(cell.starts), *map(literal, (where, self._own(cell), told)))
        return table

    def _own(self, cell: Cell) -> str:
        """The words of a cell that not all cells have, all words of the only one; its number before it has any."""
        known = [set(words_of(other.words)) for other in self.cells if other.words]
        shared = set.intersection(*known) if len(known) > 1 else set()
        return as_line(word for word in words_of(cell.words) if word not in shared) or f"cell {cell.number}"

    def study(self, finished: list[Path], left: list[tuple[str, str]]) -> tuple[Written | None, int]:
        """Write figure and table of the study that the sweep makes, if any; returns it and the exit code."""
        asked = Cells(self.folder).study()
        if asked is None:
            return None, 0
        from btp.report.studies.write import typed, write_study  # late: it draws

        try:
            return write_study(asked, finished, self.folder, left, typed(Cells(self.folder).command())), 0
        except Exception as error:  # whatever it is, the comparison is still to be written
            what = str(error) if isinstance(error, ValueError | OSError) else repr(error)
            say(f"the study {asked.get('name', '')} cannot be made: {what}")
            return None, FAILED_CODE

    def _track(self) -> None:
        logger = logger_of(self.folder)
        if logger is not None:
            tracker_of(logger).log_sweep(self.folder, self.cells)

    def _compare(self, finished: list[Path], left: list[tuple[str, str]], study: Written | None) -> int:
        """Write and print the comparison, what the study says, and where everything lies; returns the exit code."""
        from btp.report.comparison.compare import compare  # late: it draws, and a single run needs none of it here

        try:
            table, paths = compare(finished, left, self.folder, study.shown if study else None)
        except (ValueError, OSError) as error:
            say(f"the runs cannot be compared: {error}")
            return FAILED_CODE
        screen = console()
        screen.print()
        screen.print(table)
        if study:
            said = (Text(study.question, style="bold"), *map(Text, study.said), Text(""))
            screen.print(*said, sep="\n", soft_wrap=True, highlight=False)
        for path in (*paths, *(study.paths if study else ())):
            screen.print(str(path), soft_wrap=True, highlight=False)
        return 0


def _why(cell: Cell) -> str:
    """The first sentence of why a cell is not finished; all of it was said where it happened."""
    if cell.state == OPEN:
        return cell.reason or "not begun"
    return f"still running on {cell.host}" if cell.state == RUNNING else cell.reason.split(". ")[0] or cell.state


def _briefly(cell: Cell) -> str:
    return "its budget is out of reach" if cell.state == BEYOND else _why(cell)
