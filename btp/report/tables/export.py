"""The table as CSV, Markdown and LaTeX."""

import re
from collections.abc import Collection, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from btp.report.tables.columns import DASH, Column, number, spread
from btp.report.tables.run_table import Table
from btp.results.atomic import write_text
from btp.results.disk import make_folder

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "×": r"$\times$",
    "–": "--",
    "−": "$-$",
    "…": r"\ldots{}",
    "[": "{[}",  # behind a line's end it would say how far to skip
    "<": r"$<$",
    ">": r"$>$",
    "²": r"$^2$",
}


def write_table(table: Table, folder: Path, stem: str) -> list[Path]:
    """Write `<stem>.csv`, `.md` and `.tex` into `folder` and return their paths."""
    make_folder(folder)
    written = []
    for ending, text in (("csv", to_csv(table)), ("md", to_markdown(table)), ("tex", to_latex(table))):
        path = folder / f"{stem}.{ending}"
        write_text(path, text)
        written.append(path)
    return written


def to_csv(table: Table) -> str:
    """Every quantity of every row, unrounded, with the ends of the intervals; empty where not measured."""
    return table.frame.dropna(axis="columns", how="all").to_csv(index=False)


def to_markdown(table: Table) -> str:
    """The shown columns, intervals in brackets behind the numbers."""
    lines = [[_escape_pipe(_heading(column)) for column in table.columns]]
    lines += [[":--" if c.kind == "text" else "--:" for c in table.columns]]
    for _, row in table.frame.iterrows():
        lines.append([_escape_pipe(_with_interval(row, column, " ({})")) for column in table.columns])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_latex(table: Table, breaks: Collection[int] = ()) -> str:
    """A booktabs tabular of the shown columns under their groups, intervals small behind the numbers.

    Args:
        breaks: positions of rows that a line stands above.
    """
    groups = [(name, len(list(members))) for name, members in groupby(table.columns, lambda c: c.group)]
    upper, rules, at = [], [], 1
    for name, width in groups:
        upper.append(f"\\multicolumn{{{width}}}{{c}}{{{_escape_latex(name)}}}")
        rules.append(f"\\cmidrule(lr){{{at}-{at + width - 1}}}")
        at += width
    body: list[str] = []
    for at, (_, row) in enumerate(table.frame.iterrows()):
        body += [r"\midrule"] if at in breaks else []
        cells = (_escape_latex(_with_interval(row, column, "\x01{}\x02")) for column in table.columns)
        body.append(" & ".join(cells).replace("\x01", r" {\scriptsize[").replace("\x02", "]}") + r" \\")
    return "\n".join(
        [
            f"% {' '.join(table.title.split())}. Needs booktabs.",
            f"\\begin{{tabular}}{{{''.join('l' if c.kind == 'text' else 'r' for c in table.columns)}}}",
            r"\toprule",
            " & ".join(upper) + r" \\",
            " ".join(rules),
            " & ".join(_escape_latex(_heading(c)) for c in table.columns) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _heading(column: Column) -> str:
    return f"{column.title}, %" if column.kind == "percent" and "%" not in column.title else column.title


def _with_interval(row: Mapping[str, Any], column: Column, form: str) -> str:
    text, ends = number(row.get(column.key), column.kind), spread(row, column)
    return text + form.format(ends) if ends and text != DASH else text


def _escape_pipe(text: str) -> str:
    return re.sub(r"<(?=[A-Za-z/!])", "&lt;", text.replace("|", r"\|")).replace("\n", " ")


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in text.replace("\n", " "))
