"""Comparison of any set of runs: one table, one page, and what was left out with its reason."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Group, RenderableType
from rich.text import Text

from btp.report.comparison.groups import Field, fields
from btp.report.comparison.table import ranking
from btp.report.drawing_errors import Spared
from btp.report.figures.page_plots import page_plots
from btp.report.figures.pareto_figures import PLOTS, series_looks
from btp.report.figures.run_figures import to_png
from btp.report.figures.style import LIGHT, Look
from btp.report.pages.comparison_page import numbered, render
from btp.report.tables.export import to_csv, to_latex, to_markdown
from btp.report.tables.run_table import Table
from btp.report.tables.screen_table import ScreenTable, minded
from btp.report.text.comparison_text import notes
from btp.report.text.run_text import Remark
from btp.results.atomic import write_bytes, write_text
from btp.results.disk import make_folder
from btp.results.find import LeftOut, find_runs, nothing_found

_STEM = "comparison"
_ABILITY = "Accuracy by ability, %"
_IN_PRINT = (
    *("method", "model", "task", "tokens_avg", "macro", "reading", "rest"),
    *("flops_visual_pdrop", "prefill_ratio", "flops_model", "forward_ratio"),
)


def compare(
    folders: Sequence[Path],
    failed: Sequence[tuple[str, str]],
    out: Path,
    study: Mapping[str, Any] | None = None,
) -> tuple[RenderableType, list[Path]]:
    """Gather the runs at or below some folders and write comparison.html, .csv, .md, .tex and figures/ into `out`.

    Args:
        folders: run folders, or folders above them.
        failed: what never got a folder, or failed in it, and why: (command or overrides, reason).
        out: Folder to write into; made where it is missing.
        study: what the page opens with, where the runs answer one.

    Returns:
        The table for the screen, and the paths written, the page first.

    Raises:
        ValueError: a folder does not exist, or no finished run was found; the message says what was looked at.
    """
    runs, left = find_runs([Path(folder) for folder in folders])
    for what, why in failed:
        if not any(what and x.command.endswith(what) for x in left):
            left.append(LeftOut(what, why))
    if not runs:
        raise ValueError(nothing_found(folders, left))
    found = fields(runs)
    table = ranking(found)
    out = Path(out)
    make_folder(out)
    looks = series_looks(table.frame)
    spared = Spared()
    paths, plots = [], []
    for number, field in enumerate(found):
        rows = table.frame[table.frame["field"].eq(number)]
        paths += _figures(rows, field, looks, out, spared)
        plots.append(None)
        with spared.part(f"the plots of {field.name}"):
            plots[-1] = page_plots(rows, table.columns, looks, numbered(found), str(number))
    left += [LeftOut(*said.split(" is missing: ", 1)) for said in spared.said]
    page = out / f"{_STEM}.html"
    write_text(page, render(found, table, left, looks, plots, out, study))
    texts = {"csv": to_csv(table), "md": _markdown(table, left), "tex": _latex(table)}
    written = [page]
    for ending, text in texts.items():
        written.append(out / f"{_STEM}.{ending}")
        write_text(written[-1], text)
    return _screen(table, left, notes(found, table.frame, left)), [*written, *paths]


def _figures(rows: pd.DataFrame, field: Field, looks: Mapping[str, Look], out: Path, spared: Spared) -> list[Path]:
    """Draw a field's figures into files; returns their paths."""
    folder = out / "figures"
    make_folder(folder)
    slug = re.sub(r"[^\w.]+", "-", field.name).strip("-")
    paths = []
    for name, draw in PLOTS.items():
        with spared.part(f"the figure {slug}-{name}"):
            drawn = to_png(draw, rows, looks, LIGHT)
            if drawn is not None:
                paths.append(folder / f"{slug}-{name}.png")
                write_bytes(paths[-1], drawn)
    return paths


def _markdown(table: Table, left: Sequence[LeftOut]) -> str:
    """The table, the command of every row, and what was left out."""
    frame = table.frame
    lines = [f"# {table.title}", "", to_markdown(table)]
    lines += ["## Commands", ""]
    for command, rows in frame.groupby("command", sort=False):
        names = [f"{m} ({t:.1f})" for m, t in zip(rows["method"], rows["level"], strict=True)]
        lines.append(f"- {', '.join(dict.fromkeys(names))}: `{command or '?'}`")
    if left:
        lines += ["", "## Left out", ""]
        lines += [f"- `{x.what}`: {' '.join(x.why.split())}" for x in left]
    return "\n".join([*lines, ""])


def _latex(table: Table) -> str:
    """Two tabulars: the results that a page has room for, and accuracy by ability; a line between budgets."""
    budgets = list(zip(table.frame["field"], table.frame["budget"], strict=True))
    breaks = [i for i in range(1, len(budgets)) if budgets[i] != budgets[i - 1]]
    tests = ("gap_random", "p_random_holm", "p_downsampled_holm", "gap_btp", "p_btp_holm")
    results = [c for c in table.columns if c.key in (*_IN_PRINT, *tests)]
    names = [c for c in table.columns if c.kind == "text" or c.key == "tokens_avg"]
    abilities = [c for c in table.columns if c.group == _ABILITY]
    parts = [Table(table.frame, tuple(results), table.title)]
    if abilities:
        parts.append(Table(table.frame, (*names, *abilities), f"{table.title}: by ability"))
    return "\n".join(to_latex(part, breaks) for part in parts)


def _screen(table: Table, left: Sequence[LeftOut], found: Sequence[Remark]) -> RenderableType:
    """All but the abilities, and what to mind; every row carries its budget, since a narrow screen splits the table."""
    frame = table.frame
    named = [f"{m} @ {t:.1f}" for m, t in zip(frame["method"], frame["level"], strict=True)]
    columns = tuple(c for c in table.columns if c.group != _ABILITY and c.key != "tokens_avg")
    said: list[RenderableType] = [ScreenTable(Table(frame.assign(method=named), columns, table.title)), *minded(found)]
    if left:
        said.append(Text("\nLeft out", style="bold"))
        said += [Text(f"  {x.what}: {x.why}", style="" if x.kind in ("twice", "nothing") else "red") for x in left]
    return Group(*said)
