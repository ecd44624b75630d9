"""Writes a study: a figure, and a table with the command and the machine behind every number."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg

from btp.report.export import to_csv, to_markdown
from btp.report.fields import Field, fields
from btp.report.find import LeftOut, find_runs, nothing_found
from btp.report.palette import LIGHT
from btp.report.studies.coverage import coverage
from btp.report.studies.curves import curves
from btp.report.studies.dots import dots
from btp.report.studies.grid import grid
from btp.report.studies.happened import fired, inertness
from btp.report.studies.knee import depth_sweep
from btp.report.studies.published import published
from btp.report.studies.study import Answer, Study
from btp.report.studies.suites import suites
from btp.report.table import Table

KINDS = {
    "curves": curves,
    "coverage": coverage,
    "dots": dots,
    "fired": fired,
    "grid": grid,
    "inertness": inertness,
    "knee": depth_sweep,
    "published": published,
    "suites": suites,
}
DPI = 150
PLACES = ("output=", "hydra.sweep.dir=", "logger=")  # words that say nothing of the results
BEGIN, END = "<!-- {name}: written by python -m btp.study -->", "<!-- {name}: end -->"


def write_study(
    config: Mapping[str, Any],
    folders: Sequence[Path],
    out: Path,
    failed: Sequence[tuple[str, str]] = (),
    command: str = "",
) -> list[Path]:
    """Answer a study from run folders, and write NAME.png, NAME.csv and NAME.md.

    Where `out` holds a README.md with the marks BEGIN and END of this study, what stands between them becomes NAME.md.

    Args:
        config: of the study, as its experiment's yaml has it, with its name.
        folders: of runs, or folders above them.
        out: made where it is missing.
        failed: cells that are not among the runs: (words, reason).
        command: that made the runs; empty lists those of the runs.

    Returns:
        What was written, the figure first.

    Raises:
        ValueError: no finished run, no such figure, or runs that cannot answer the study.
    """
    study = Study.of(config)
    if study.figure not in KINDS:
        raise ValueError(f"study.figure is {study.figure!r}. Choose from: {', '.join(sorted(KINDS))}.")
    runs, left = find_runs([Path(folder) for folder in folders])
    left += [LeftOut(plain(what), why) for what, why in failed]
    if not runs:
        raise ValueError(nothing_found(folders, left))
    found = fields(runs)
    answer = KINDS[study.figure](found, study)
    out.mkdir(parents=True, exist_ok=True)
    figure, table, page = (out / f"{study.name}.{ending}" for ending in ("png", "csv", "md"))
    figure.write_bytes(_png(answer))
    shown = answer.frame.drop(columns=[x for x in ("entry", "folder", "run") if x in answer.frame])
    if "command" in shown:
        shown["command"] = shown["command"].map(plain)
    table.write_text(to_csv(Table(shown, (), study.name)), encoding="utf-8")
    text = _page(study, answer, found, [x for x in left if x.kind != "twice"], command)
    page.write_text(text, encoding="utf-8")
    return [figure, table, page, *_into_readme(out / "README.md", study.name, text)]


def plain(command: str) -> str:
    """A command without where its results went."""
    return " ".join(word for word in command.split() if not word.startswith(PLACES))


def _png(answer: Answer) -> bytes:
    with matplotlib.rc_context(LIGHT.style()):
        figure = answer.draw(LIGHT)
        FigureCanvasAgg(figure)
        buffer = BytesIO()
        figure.savefig(buffer, dpi=DPI, format="png")
    return buffer.getvalue()


def _page(study: Study, answer: Answer, found: Sequence[Field], left: Sequence[LeftOut], command: str) -> str:
    runs = [run for one in found for run in one.runs]
    commands = [command] if command else sorted({plain(str(run.run.get("command") or "?")) for run in runs})
    machines = dict.fromkeys(str(run.run.get("hardware") or "?") for run in runs)
    samples = sorted({run.samples["sample"].nunique() for run in runs})
    spread = any(f"{column.key}_low" in answer.frame for column in answer.columns)
    brackets = "; 95% intervals in brackets" if spread else ""
    lines = [f"![{study.question}]({study.name}.png)", ""]
    lines += [f"- {text}" for text in answer.said]
    lines += ["", to_markdown(Table(answer.frame, tuple(answer.columns), study.name))]
    lines += [
        f"{len(runs)} runs, {' and '.join(map(str, samples))} samples each, {'; '.join(one.name for one in found)}; "
        f"{'; '.join(machines)}{brackets}. All numbers: [{study.name}.csv]({study.name}.csv).",
        "",
        "```",
        *commands,
        "```",
    ]
    if left:
        lines += ["", "Left out:", "", *(f"- `{x.what}`: {' '.join(x.why.split())}" for x in left)]
    return "\n".join([*lines, ""])


def _into_readme(readme: Path, name: str, text: str) -> list[Path]:
    """Put the result between the study's marks on a page; nothing where there is no page, or no marks."""
    begin, end = BEGIN.format(name=name), END.format(name=name)
    old = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    if begin not in old or end not in old:
        return []
    between = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    readme.write_text(between.sub(lambda _: f"{begin}\n{text}{end}", old, count=1), encoding="utf-8")
    return [readme]
