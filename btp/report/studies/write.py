"""Writes a study: a figure, and a table with the command and the machine behind every number."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib

from btp.core.check_settings import check_one_of
from btp.report.comparison.groups import Field, fields
from btp.report.figures.axes import lay_out
from btp.report.figures.style import LIGHT
from btp.report.pages.html import cell
from btp.report.pages.sample_cards import data_uri
from btp.report.studies.ablation import dots
from btp.report.studies.calibration import calibration
from btp.report.studies.controls import fired, inertness
from btp.report.studies.coverage import coverage
from btp.report.studies.curves import curves
from btp.report.studies.depth_sweep import depth_sweep
from btp.report.studies.grid import grid
from btp.report.studies.late_questions import late
from btp.report.studies.paired_suites import suites
from btp.report.studies.reproduce import published
from btp.report.studies.study import Answer, Study
from btp.report.tables.export import to_csv, to_markdown
from btp.report.tables.run_table import Table
from btp.results.atomic import write_bytes, write_text
from btp.results.command_line import as_line, words_of
from btp.results.disk import make_folder
from btp.results.find import LeftOut, find_runs, nothing_found
from btp.results.shipped import PROGRAM

KINDS = {
    "calibration": calibration,
    "curves": curves,
    "coverage": coverage,
    "dots": dots,
    "fired": fired,
    "grid": grid,
    "inertness": inertness,
    "knee": depth_sweep,
    "late": late,
    "published": published,
    "suites": suites,
}
DPI = 150
PLACES = ("output=", "hydra.sweep.dir=", "logger=")  # words that say nothing of the results
BEGIN, END = "<!-- {name}: written by python -m btp.study -->", "<!-- {name}: end -->"


@dataclass(frozen=True)
class Written:
    """A study that was answered.

    Attributes:
        question: Question of the study.
        said: the answer in sentences.
        paths: Paths of what was written, the figure first.
        shown: what templates/study.html shows of it.
    """

    question: str
    said: tuple[str, ...]
    paths: tuple[Path, ...]
    shown: Mapping[str, Any]


def write_study(
    config: Mapping[str, Any],
    folders: Sequence[Path],
    out: Path,
    failed: Sequence[tuple[str, str]] = (),
    command: str = "",
) -> Written:
    """Answer a study from run folders, and write NAME.png, NAME.csv and NAME.md.

    Where `out` holds a README.md with the marks BEGIN and END of this study, what stands between them becomes NAME.md.

    Args:
        config: Config of the study, as its experiment's yaml has it, with its name.
        folders: Folders of runs, or folders above them.
        out: Folder to write into; made where it is missing.
        failed: cells that are not among the runs: (words, reason).
        command: Command that made the runs; empty lists those of the runs.

    Raises:
        ValueError: no finished run, no such figure, or runs that cannot answer the study.
    """
    study = Study.of(config)
    check_one_of("study.figure", study.figure, sorted(KINDS))
    runs, left = find_runs([Path(folder) for folder in folders])
    left += [LeftOut(plain(what), why) for what, why in failed]
    if not runs:
        raise ValueError(nothing_found(folders, left))
    found = fields(runs)
    answer = KINDS[study.figure](found, study)
    make_folder(out)
    figure, table, page = (out / f"{study.name}.{ending}" for ending in ("png", "csv", "md"))
    caption = _caption(found)
    png = _png(answer, caption)
    write_bytes(figure, png)
    shown = answer.frame.drop(columns=[x for x in ("entry", "folder", "run") if x in answer.frame])
    if "command" in shown:
        shown["command"] = shown["command"].map(plain)
    write_text(table, to_csv(Table(shown, (), study.name)))
    text = _page(study, answer, found, [x for x in left if x.kind != "twice"], command)
    write_text(page, text)
    paths = (figure, table, page, *_into_readme(out / "README.md", study.name, text))
    shown = {"question": study.question, "said": answer.said, "caption": caption, "uri": data_uri(png)}
    return Written(study.question, tuple(answer.said), paths, shown | _cells(answer))


def typed(words: Sequence[str]) -> str:
    """A command as it is typed, without where its results go."""
    return f"{PROGRAM} {shlex.join(word for word in words if not word.startswith(PLACES))}"


def plain(command: str) -> str:
    """A command without where its results went."""
    return as_line(word for word in words_of(command) if not word.startswith(PLACES))


def _caption(found: Sequence[Field]) -> str:
    """What the numbers are of, so that a figure can be cited alone."""
    out = []
    for one in found:
        counts = sorted({run.samples["sample"].nunique() for run in one.runs})
        out.append(f"{one.name}, n = {' and '.join(map(str, counts))}")
    return "; ".join(out)


def _cells(answer: Answer) -> dict[str, Any]:
    columns = [{"title": x.title, "help": x.help, "text": x.kind == "text"} for x in answer.columns]
    rows = [[cell(row, column) for column in answer.columns] for _, row in answer.frame.iterrows()]
    return {"columns": columns, "rows": rows}


def _png(answer: Answer, caption: str) -> bytes:
    with matplotlib.rc_context(LIGHT.style()):
        figure = answer.draw(LIGHT)
        lay_out(figure)
        below = textwrap.fill(caption, int(18 * figure.get_figwidth()))
        figure.text(0.01, -0.01, below, va="top", fontsize=7.5, color=LIGHT.soft)
        buffer = BytesIO()
        figure.savefig(buffer, dpi=DPI, format="png", bbox_inches="tight", pad_inches=0.08)
    return buffer.getvalue()


def _page(study: Study, answer: Answer, found: Sequence[Field], left: Sequence[LeftOut], command: str) -> str:
    runs = [run for one in found for run in one.runs]
    commands = [command] if command else sorted({plain(str(run.run.get("command") or "?")) for run in runs})
    machines = dict.fromkeys(str(run.run.get("hardware") or "?") for run in runs)
    samples = sorted({run.samples["sample"].nunique() for run in runs})
    spread = any(f"{column.key}_low" in answer.frame for column in answer.columns)
    brackets = "; 95% intervals in brackets" if spread else ""
    lines = ["```", *commands, "```", "", f"![{study.question}]({study.name}.png)", ""]
    lines += [f"- {text}" for text in answer.said]
    lines += ["", to_markdown(Table(answer.frame, tuple(answer.columns), study.name))]
    lines += [
        f"{len(runs)} runs, {' and '.join(map(str, samples))} samples each, {'; '.join(one.name for one in found)}; "
        f"{'; '.join(machines)}{brackets}. All numbers: [{study.name}.csv]({study.name}.csv).",
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
    write_text(readme, between.sub(lambda _: f"{begin}\n{text}{end}", old, count=1))
    return [readme]
