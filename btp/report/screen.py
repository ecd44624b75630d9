"""The table for a terminal: as many pieces as its width asks for, each with the row's name in front."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from btp.report.columns import METRICS, Column, number, spread
from btp.report.load import read_run
from btp.report.table import Table, run_table

_GAP = 2
_NAME = 28  # widest column of names before it wraps
_STYLE = {"baseline": "dim", "method": "bold", "control": ""}


def screen_table(folder: Path) -> RenderableType:
    """A run's table, to print with rich.

    Raises:
        ValueError: the folder is no run folder, or a file in it is missing or broken.
    """
    return ScreenTable(run_table(read_run(folder)))


@dataclass(frozen=True)
class ScreenTable:
    """Prints a table in pieces no wider than the screen: answers, accuracy by ability, cost."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        names = [column for column in self.table.columns if column.kind == "text"]
        yield Text(self.table.title, style="bold")
        for title, columns in _topics(self.table.columns):
            for piece in self._pieces(names, columns, options.max_width):
                yield self._rich(title, names, piece)

    def _pieces(self, names: list[Column], columns: list[Column], width: int) -> Iterable[list[Column]]:
        room = width - sum(min(self._width(c), _NAME) + _GAP for c in names)
        piece: list[Column] = []
        used = 0
        for column in columns:
            need = self._width(column) + _GAP
            if piece and used + need > room:
                yield piece
                piece, used = [], 0
            piece.append(column)
            used += need
        yield piece

    def _width(self, column: Column) -> int:
        cells = [_cell(row, column) for _, row in self.table.frame.iterrows()]
        return max(len(line) for text in (*_heading(column), *cells) for line in text.split("\n"))

    def _rich(self, title: str, names: list[Column], columns: list[Column]) -> RichTable:
        table = RichTable(
            title=f"\n{title}",
            title_justify="left",
            title_style="dim",
            box=box.SIMPLE_HEAD,
            padding=(0, _GAP - 1, 0, 0),  # and one blank that the box draws
            show_edge=False,
        )
        for column in names:
            table.add_column(column.title, min_width=min(self._width(column), _NAME), max_width=_NAME)
        for column in columns:
            table.add_column("\n".join(_heading(column)), justify="right", no_wrap=True)
        for _, row in self.table.frame.iterrows():
            cells = [Text(str(row[c.key])) for c in names]
            for column in columns:
                first, _, second = _cell(row, column).partition("\n")
                cells.append(Text.assemble(first, *([("\n" + second, "dim")] if second else [])))
            table.add_row(*cells, style=_STYLE.get(str(row["role"]), ""))
        return table


def _topics(columns: Iterable[Column]) -> list[tuple[str, list[Column]]]:
    """The numbers by what they tell, so that a narrow screen splits where a reader would."""
    numbers = [column for column in columns if column.kind != "text"]
    apart = (METRICS, "Accuracy by ability, %", "Cost")
    topics = [("Answers (95% intervals below)", [c for c in numbers if c.group not in apart])]
    topics += [(group, [c for c in numbers if c.group == group]) for group in apart]
    return [(title, members) for title, members in topics if members]


def _heading(column: Column) -> list[str]:
    if column.group == "Accuracy, %":
        return [f"{column.title}, %"]
    return column.title.replace(", ", ",\n").split("\n")


def _cell(row: Mapping[str, Any], column: Column) -> str:
    ends = spread(row, column) if column.kind != "text" else ""
    return number(row[column.key], column.kind) + (f"\n{ends}" if ends else "")
