"""The table for a terminal, split into pieces that fit its width."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from btp.report.tables.columns import ABILITY, METRICS, Column, number, spread
from btp.report.tables.run_table import Table, run_table
from btp.report.terminal import literal
from btp.report.text.run_text import Remark, remarks
from btp.results.reader import read_run

_GAP = 2
_LONGEST = 40  # characters of a heading
_NAME = 28  # widest column of names before it wraps
_DISPENSABLE = (
    "easy",
    "hard",
    "retained",
    "kl",
    "rest",
    "reading",
    "agreement",
)  # the first goes first
_STYLE = {"baseline": "dim", "method": "bold", "control": ""}


def screen_table(folder: Path) -> RenderableType:
    """A run's table and what to mind of it, to print with rich.

    Raises:
        ValueError: the folder is no run folder, or a file in it is missing or broken.
    """
    run = read_run(folder)
    table = run_table(run)
    return Group(ScreenTable(table), *minded(remarks(run, table)))


def minded(found: Iterable[Remark]) -> list[Text]:
    """Warnings as lines below a table; nothing of checks that passed."""
    style = {"bad": "red", "note": ""}
    lines = [Text(f"{remark.text}", style=style[remark.kind]) for remark in found if remark.kind in style]
    return [Text("\nTo mind", style="bold"), *lines] if lines else []


@dataclass(frozen=True)
class ScreenTable:
    """Prints a table in pieces no wider than the screen: answers, accuracy by ability, cost.

    Of the answers, columns that others tell as well are left out where that makes them one piece; a test stands beside
    what it is about.
    """

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        names = [column for column in self.table.columns if column.kind == "text"]
        yield literal(self.table.title, "bold")
        for title, columns in _topics(self.table.columns):
            room = options.max_width - sum(min(self._width(c), _NAME) + _GAP for c in names)
            chosen = self._chosen(columns, room)
            left = [c.title.split(",")[0] for c in columns if c not in chosen]
            said = f"{title}; without {', '.join(left)}" if left else title
            for piece in self._pieces(chosen, room):
                yield self._rich(said, names, piece)

    def _pieces(self, columns: list[Column], room: int) -> Iterable[list[Column]]:
        piece: list[Column] = []
        for block in _blocks(columns):
            if piece and self._need([*piece, *block]) > room:
                yield piece
                piece = []
            piece += block
        yield piece

    def _chosen(self, columns: list[Column], room: int) -> list[Column]:
        """All columns, or without as many of the dispensable ones as it takes to fit; all where that does not do."""
        chosen = columns
        for key in (None, *_DISPENSABLE):
            chosen = [column for column in chosen if column.key != key]
            if self._need(chosen) <= room:
                return chosen
        return columns

    def _need(self, columns: Iterable[Column]) -> int:
        return sum(self._width(column) + _GAP for column in columns)

    def _width(self, column: Column) -> int:
        cells = [_cell(row, column) for _, row in self.table.frame.iterrows()]
        return max(literal(line).cell_len for text in (*_heading(column), *cells) for line in text.split("\n"))

    def _rich(self, title: str, names: list[Column], columns: list[Column]) -> RichTable:
        table = RichTable(
            title=literal(f"\n{title}", "dim"),
            title_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, _GAP - 1, 0, 0),  # and one blank that the box draws
            show_edge=False,
        )
        for column in names:
            table.add_column(literal(column.title), min_width=min(self._width(column), _NAME), max_width=_NAME)
        for column in columns:
            table.add_column(literal("\n".join(_heading(column))), justify="right", no_wrap=True)
        for _, row in self.table.frame.iterrows():
            cells = [literal(row[c.key]) for c in names]
            for column in columns:
                first, _, second = _cell(row, column).partition("\n")
                cells.append(Text.assemble(first, *([("\n" + second, "dim")] if second else [])))
            table.add_row(*cells, style=_STYLE.get(str(row["role"]), ""))
        return table


def _topics(columns: Iterable[Column]) -> list[tuple[str, list[Column]]]:
    """The numbers by what they tell, so that a narrow screen splits where a reader would."""
    numbers = [column for column in columns if column.kind != "text"]
    apart = (METRICS, ABILITY, "Cost")
    topics = [("Answers, 95% intervals below", [c for c in numbers if c.group not in apart])]
    topics += [(group, [c for c in numbers if c.group == group]) for group in apart]
    return [(title, members) for title, members in topics if members]


def _blocks(columns: Iterable[Column]) -> list[list[Column]]:
    """Columns that are not torn apart: a distance and its test."""
    blocks: list[list[Column]] = []
    for column in columns:
        if blocks and column.kind == "p" and blocks[-1][-1].group == column.group:
            blocks[-1].append(column)
        else:
            blocks.append([column])
    return blocks


def _heading(column: Column) -> list[str]:
    title = column.title if len(column.title) <= _LONGEST else f"{column.title[: _LONGEST - 1]}…"
    if column.group == "Accuracy, %":
        return [title, "%"]
    if column.kind == "p":
        return title.replace(", ", ",\n").replace("-", "-\n").split("\n")
    return (title if ", " in title else title.replace(" ", "\n", 1)).replace(", ", ",\n").split("\n")


def _cell(row: Mapping[str, Any], column: Column) -> str:
    ends = spread(row, column) if column.kind != "text" else ""
    return number(row[column.key], column.kind) + (f"\n{ends}" if ends else "")
