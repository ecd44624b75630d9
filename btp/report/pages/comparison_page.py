"""The page of a comparison: one HTML file that needs nothing beside it."""

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from math import isnan
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import yaml

from btp.report.comparison.config_diff import differences
from btp.report.comparison.groups import Field
from btp.report.figures.style import Look
from btp.report.pages.html import cell, duration, environment, grouped
from btp.report.pages.kept_cards import kept_data
from btp.report.tables.columns import ABILITY, METRICS, number
from btp.report.tables.run_table import Table
from btp.report.text.checks import checks
from btp.report.text.comparison_text import notes, verdict
from btp.report.text.run_text import NOTABLE
from btp.results.find import LeftOut
from btp.results.reader import RunFolder

_FRONTS = {
    "tokens_avg": "tokens",
    "slots": "KV slots",
    "flops_visual_pdrop": "visual FLOPs",
    "flops_prefill": "prefill FLOPs",
    "prefill_ratio": "time",
    "flops_model": "FLOPs",
    "forward_ratio": "time",
}
_PROVENANCE = ("search", "calibration", "budget", "solved", "moved")  # keys of run.json, where a run has them
_FOLDS = (ABILITY, METRICS)  # columns that give way where the table has no room


def render(
    fields: Sequence[Field],
    table: Table,
    left: Sequence[LeftOut],
    looks: Mapping[str, Look],
    plots: Sequence[Mapping[str, Any] | None],
    out: Path,
    study: Mapping[str, Any] | None = None,
) -> str:
    """The page's HTML.

    Args:
        table: Table of all fields, with the columns of btp.report.comparison.table.
        left: what is not in it.
        looks: colour per series.
        plots: Plots of each field, as `page_plots` makes them.
        out: where the page will lie, so that it can point at the runs' reports.
        study: the answer that the page opens with, as templates/study.html has it.
    """
    runs = [run for field in fields for run in field.runs]
    frame = table.frame
    numbers = numbered(fields)
    shown = []
    for i, field in enumerate(fields):
        rows = frame[frame["field"].eq(i)]
        shown.append(_field(i, field, rows) | {"plots": plots[i], "kept": kept_data(field, rows, looks)})
    return (
        environment()
        .get_template("comparison.html")
        .render(
            looks=looks,
            title="; ".join(field.name for field in fields),
            runs=[_run(numbers[str(run.path)], run, frame, out) for run in runs],
            differing=differences(runs) if len(runs) > 1 else [],
            facts=_facts(runs, frame),
            table=_table(table, numbers, {str(run.path): _report(run, out) for run in runs}),
            notes=notes(fields, frame, left),
            fields=shown,
            left=left,
            study=study,
            notable=NOTABLE,
        )
    )


def numbered(fields: Sequence[Field]) -> dict[str, int]:
    """The number of each run on the page, by its folder."""
    runs = [run for field in fields for run in field.runs]
    return {str(run.path): i for i, run in enumerate(runs, start=1)}


def _facts(runs: Sequence[RunFolder], frame: pd.DataFrame) -> list[str]:
    hardware = list(dict.fromkeys(h for h in frame["hardware"] if h))
    samples = sorted({int(n) for n in frame["samples"]})
    spread = f"{samples[0]} to {samples[-1]}" if len(samples) > 1 else str(samples[0])
    return [f"{len(runs)} run{'s' if len(runs) != 1 else ''}", f"{len(frame)} rows", f"{spread} samples", *hardware]


def _field(at: int, field: Field, rows: pd.DataFrame) -> dict[str, Any]:
    return {
        "at": at,
        "name": field.name,
        "verdict": verdict(field, rows),
        "reading": sorted({ability for run in field.runs for ability in run.reading}),
    }


def _table(table: Table, numbers: Mapping[str, int], reports: Mapping[str, str]) -> dict[str, Any]:
    groups, starts = grouped(table.columns)
    frame = table.frame
    bases = {row["field"]: row for _, row in frame.iterrows() if row["role"] == "baseline"}
    rows, last = [], None
    for _, row in frame.iterrows():
        budget = (row["field"], row["budget"])
        rows.append(
            {
                "role": row["role"],
                "series": row["series"],
                "note": row["budget_note"],
                "run": numbers[row["folder"]],
                "report": reports[row["folder"]],
                "fronts": [name for key, name in _FRONTS.items() if row[f"front_{key}"]],
                "first": last is not None and budget != last,
                "cells": [
                    _cell(row, c, bases.get(row["field"])) | {"start": c.key in starts, "group": c.group}
                    for c in table.columns
                ],
            }
        )
        last = budget
    columns = [{"title": c.title, "help": c.help, "text": c.kind == "text", "group": c.group} for c in table.columns]
    groups = [group | {"folds": group["name"] in _FOLDS} for group in groups]
    return {"groups": groups, "columns": columns, "rows": rows}


def _cell(row: Mapping[str, Any], column: Any, base: Mapping[str, Any] | None) -> dict[str, Any]:
    """As a run's table has it; a distance is marked by its own test."""
    found = cell(row, column, None if row["role"] == "baseline" else base)
    if column.kind == "points":
        p = row[f"p_{column.key.removeprefix('gap_')}_holm"]
        found["mark"] = "" if isnan(p) or p >= NOTABLE else "drop" if row[column.key] < 0 else "gain"
    return found


def _run(number_: int, run: RunFolder, frame: pd.DataFrame, out: Path) -> dict[str, Any]:
    started = run.run.get("started")
    rows = frame[frame["folder"].eq(str(run.path))]
    return {
        "number": number_,
        "name": run.run.get("name") or run.path.name,
        "label": ", ".join(dict.fromkeys(_labels(run, rows))) or "costs only",
        "folder": str(run.path),
        "report": _report(run, out),
        "checks": checks(run),
        "identity": str(run.run.get("identity") or ""),
        "command": str(run.run.get("command") or ""),
        "hardware": str(run.cost.get("hardware") or run.run.get("hardware") or ""),
        "started": datetime.fromisoformat(started).strftime("%-d %B %Y, %H:%M") if started else "",
        "seconds": duration(run.run.get("seconds")),
        "samples": int(run.samples["sample"].nunique()),
        "rows": [{"series": r["series"], "text": r["method"]} for _, r in rows.iterrows()],
        "budgets": _budgets(rows),
        "calibration": _calibration(run),
        "provenance": _provenance(run),
    }


def _labels(run: RunFolder, rows: pd.DataFrame) -> list[str]:
    """The run's methods as the table calls them; by their titles where their rows are other runs'."""
    return list(rows.loc[rows["role"].eq("method"), "method"]) or [arm.title for arm in run.methods]


def _report(run: RunFolder, out: Path) -> str:
    """Where the run's report lies, as seen from the page; "" where it has none."""
    page = run.path / "report.html"
    return quote(Path(os.path.relpath(page.resolve(), out.resolve())).as_posix()) if page.is_file() else ""


def _budgets(rows: pd.DataFrame) -> list[str]:
    """What the run's methods asked for and reached."""
    out = []
    for _, row in rows[rows["role"].eq("method") & rows["budget_asked"].notna()].iterrows():
        reached = row["tokens_avg"] if isnan(row["budget_reached"]) else row["budget_reached"]
        note = f", {row['budget_note']}" if row["budget_note"] else ""
        out.append(
            f"{row['series']}: budget {number(row['budget_asked'], 'tokens')}, "
            f"reached {number(reached, 'tokens')}{note}"
        )
    return out


def _calibration(run: RunFolder) -> str:
    """One line: how many samples of which set gave which stages."""
    known = run.calibration
    if not known:
        return ""
    name = (known.get("calibration") or {}).get("name", "?")
    count = (known.get("curves") or {}).get("samples") or (known.get("calibration") or {}).get("samples", "?")
    stages = [f"{s.get('site') or s.get('layer')} keeps {s.get('keep')}" for s in known.get("stages") or ()]
    identity = f", artifact {known['identity']}" if known.get("identity") else ""
    return f"{count} samples of {name}{identity}: {', '.join(stages) or 'no stages'}"


def _provenance(run: RunFolder) -> str:
    """Everything a run says about where its settings come from."""
    said: dict[str, Any] = {key: run.run[key] for key in _PROVENANCE if run.run.get(key)}
    budgets = {arm.arm: dict(arm.budget) for arm in run.arms if arm.budget}
    if budgets:
        said["budgets"] = budgets
    for path in sorted(run.path.glob("search*.yaml")):
        said[path.name] = path.read_text(encoding="utf-8")
    if run.calibration:
        said["calibration.yaml"] = {k: v for k, v in run.calibration.items() if k != "curves"}
    return yaml.safe_dump(said, sort_keys=False, allow_unicode=True).strip() if said else ""
