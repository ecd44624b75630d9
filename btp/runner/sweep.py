"""The cells of a sweep, and their comparison at its end."""

from __future__ import annotations

import sys
from pathlib import Path

from btp.runner.launch import FAILED, Outcome


class Sweep:
    """Collects how every cell ended.

    Args:
        folder: where the comparison goes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._cells: list[tuple[str, Outcome]] = []

    def add(self, name: str, outcome: Outcome) -> None:
        """Note a cell.

        Args:
            name: the words of its command line.
            outcome: how it ended.
        """
        self._cells.append((name, outcome))

    def end(self) -> int:
        """Print and write one comparison of all cells, failed ones with their reason.

        Returns:
            1 where a cell failed for another reason than a budget out of reach, 0 otherwise.
        """
        failed = [(name, outcome.reason) for name, outcome in self._cells if outcome.code]
        finished = [Path(outcome.folder) for _, outcome in self._cells if not outcome.code and outcome.folder]
        code = FAILED if any(outcome.code and not outcome.unreachable for _, outcome in self._cells) else 0
        if finished:
            code = max(code, self._compare(list(dict.fromkeys(finished)), failed))
        if failed:
            lines = [f"{name}: {reason}" for name, reason in failed]
            print(f"\n{len(failed)} run(s) failed:", *lines, sep="\n  ", file=sys.stderr)
        return code

    def _compare(self, finished: list[Path], failed: list[tuple[str, str]]) -> int:
        from rich.console import Console

        from btp.report.gather import compare  # late: it draws, and a single run needs none of it here

        try:
            table, paths = compare(finished, failed, self.folder)
        except (ValueError, OSError) as error:
            print(f"error: the runs cannot be compared: {error}", file=sys.stderr)
            return FAILED
        console = Console()
        console.print()
        console.print(table)
        for path in paths:
            console.print(str(path), soft_wrap=True, highlight=False)
        return 0
