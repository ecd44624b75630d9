"""Writes a run's report: an HTML page that needs nothing beside it; tables, plots and overlays as files."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from btp.report.drawing_errors import Spared
from btp.report.figures.run_figures import PLOTS, to_png
from btp.report.figures.style import DARK, LIGHT, looks
from btp.report.figures.token_overlays import marks_of, on_grid, overlay_png, stage_views
from btp.report.pages import sample_cards as browser
from btp.report.pages.html import cell, duration, environment, grouped, keep_text
from btp.report.pages.word_cards import word_cards
from btp.report.tables.columns import ABILITY, COST, DASH, METRICS, RATIOS, number, spread, told_from_one
from btp.report.tables.export import write_table
from btp.report.tables.run_table import Table, run_table
from btp.report.text.executed_stages import fired
from btp.report.text.run_text import Remark, headline, remarks
from btp.report.text.token_names import in_unit
from btp.results.atomic import write_bytes, write_text
from btp.results.disk import make_folder
from btp.results.reader import RunFolder, read_run
from btp.results.symlinks import refuse_links
from btp.tasks.files.decode_image import open_picture
from btp.tasks.files.local import file_name

_PLOT_TEXTS = {
    "accuracy_by_ability": (
        "Accuracy by ability",
        "Mean score per ability with its 95% interval; in brackets, samples per ability.",
    ),
    "accuracy_by_tokens": (
        "Accuracy over visual tokens",
        "Macro accuracy with its 95% interval.",
    ),
    "tokens_per_layer": (
        "Visual tokens per layer",
        "Mean visual tokens that entered each decoder layer, as the run counted them.",
    ),
    "needles": (
        "Needles by length and depth",
        "Accuracy in percent: a cell per length of the text and place of the needle in it.",
    ),
    "rows_per_step": (
        "Rows per decode step",
        "Mean rows computed behind each stage: the newest token, and those that came back.",
    ),
    "calibration": ("Calibration", "What each layer does to the picture, and the layers the stages came to."),
}


def write_report(folder: Path, facts: Mapping[str, Any] | None = None) -> Path:
    """Write report.html, table.csv, .md and .tex, figures/ and overlays/ into a run folder.

    A figure or an overlay that cannot be drawn is left out; a warning and the page say so. The page comes last, and
    each file is written whole or not at all.

    Args:
        facts: Facts that run.json will have behind it, such as how the run ended.

    Returns:
        Path of report.html.

    Raises:
        ValueError: the folder is no run folder, is a symbolic link or holds one, or a file in it is missing or broken.
        CannotWrite: there is no room, or no permission.
    """
    run = read_run(folder)
    refuse_links(run.path)
    run = replace(run, run={**run.run, **(facts or {})})
    table = run_table(run)
    write_table(table, run.path, "table")
    spared = Spared()
    figures = _write_figures(run, table, spared)
    _write_overlays(run, spared)
    page = run.path / "report.html"
    write_text(page, _render(run, table, figures, spared))
    return page


def _write_figures(run: RunFolder, table: Table, spared: Spared) -> dict[str, dict[str, str]]:
    folder = run.path / "figures"
    make_folder(folder)
    figures = {}
    for name, draw in PLOTS.items():
        with spared.part(f"the figure {name}"):
            png = to_png(draw, run, table, LIGHT)
            if png is None:
                continue
            write_bytes(folder / f"{name}.png", png)
            dark = to_png(draw, run, table, DARK)
            title, caption = (in_unit(text, run.unit) for text in _PLOT_TEXTS[name])
            uris = {"light": browser.data_uri(png), "dark": browser.data_uri(dark)}
            figures[name] = {"title": title, "caption": caption, **uris}
    return figures


def _write_overlays(run: RunFolder, spared: Spared) -> None:
    if not run.pictures:
        return
    folder = run.path / "overlays"
    make_folder(folder)
    for sample, picture in run.pictures.items():
        with spared.part(f"the overlay of sample {sample}"):
            arms = [arm for arm in run.arms if on_grid(run, arm.arm, sample)]
            rows = [(arm.title, stage_views(run, arm.arm, sample)) for arm in arms]
            marks = [marks_of(run, arm.arm, sample) for arm, row in zip(arms, rows, strict=True) if row[1]]
            with open_picture(picture.path) as image:
                png = overlay_png(image, picture.views, [row for row in rows if row[1]], marks)
            write_bytes(folder / f"{file_name(sample)}.png", png)


def _render(run: RunFolder, table: Table, figures: Mapping[str, Any], spared: Spared) -> str:
    look = looks([(arm.arm, arm.role) for arm in run.arms])
    samples = browser.cards(run, spared)
    strips = list(dict.fromkeys((s["arm"], s["title"]) for card in samples for s in card["strips"]))
    method = run.methods[0].arm if run.methods else ""
    return (
        environment()
        .get_template("report.html")
        .render(
            dash=DASH,
            head=_head(run),
            headline=headline(run, table),
            tiles=_tiles(run, table),
            remarks=[*(Remark("bad", text) for text in spared.said), *remarks(run, table)],
            arms=[{"arm": a.arm, "title": a.title, "role": a.role, "note": a.note} for a in run.arms],
            looks=look,
            table=_table(replace(table, columns=tuple(c for c in table.columns if c.group != METRICS))),
            metrics=_metrics(run, table),
            figures=figures,
            cost=_cost(run, table),
            stages=[e | {"keep": keep_text(e["keep"])} for e in fired(run)],
            calibration=_calibration(run),
            inert=run.run.get("inert"),
            samples=samples,
            texts=word_cards(run, spared),
            strips=strips,
            shown_strip=method if any(arm == method for arm, _ in strips) else (strips[0][0] if strips else ""),
            abilities=[a for a in run.abilities if any(card["ability"] == a for card in samples)],
            tested=len(run.abilities),
            details=_details(run),
            number=number,
        )
    )


def _head(run: RunFolder) -> dict[str, Any]:
    started = run.run.get("started")
    return {
        "pruner": run.setting("pruner.name", "?"),
        "model": run.setting("model.name", "?"),
        "task": run.setting("task.name", "?"),
        "name": run.run.get("name") or run.path.name,
        "state": run.run.get("state", "?"),
        "command": run.run.get("command", ""),
        "hardware": run.run.get("hardware", ""),
        "samples": run.samples["sample"].nunique(),
        "started": datetime.fromisoformat(started).strftime("%-d %B %Y, %H:%M") if started else "",
        "seconds": duration(run.run.get("seconds")),
        "identity": run.run.get("identity", ""),
    }


def _tiles(run: RunFolder, table: Table) -> list[dict[str, str]]:
    """The first method's key numbers, each beside the unpruned model's."""
    arm_of = (run.methods or run.arms)[0]
    arm = arm_of.arm
    rows = {row["arm"]: row for _, row in table.frame.iterrows()}
    row, base = rows[arm], rows.get(run.baseline.arm) if run.baseline else None
    keys = (
        *(("tokens_avg",) if arm_of.cuts or not arm_of.evicts else ()),
        *(("slots",) if arm_of.evicts else ()),
        "macro",
        "reading",
        "agreement",
        "flops_prefill",
        "prefill_ratio",
        "flops_model",
        "forward_ratio",
    )
    columns = {c.key: c for c in (*table.columns, *COST)}
    titles = {
        "tokens_avg": f"{run.unit}, layer average",
        "slots": "KV slots, layer average",
        "macro": "macro accuracy",
        "reading": "reading in the picture",
        "agreement": "same answer as unpruned",
        "flops_prefill": "prefill FLOPs",
        "prefill_ratio": "prefill time, × unpruned",
        "flops_model": "FLOPs",
        "forward_ratio": "time, × unpruned",
    }
    tiles = []
    for key in keys:
        if key not in columns or (text := number(row.get(key), columns[key].kind)) == DASH:
            continue
        against = ""
        if base is not None and key not in ("agreement", *RATIOS):
            against = f"unpruned {number(base.get(key), columns[key].kind)}"
        elif ends := spread(row, columns[key]):
            against = f"{'95% interval' if key == 'agreement' else 'range'} {ends}"
        if key in RATIOS and not told_from_one(row, key):
            ends = spread(row, columns[key])
            text, against = ends or "open", "spans 1: not told from unpruned" if ends else "too few rounds to tell"
        percent = "%" if columns[key].kind == "percent" else ""
        tiles.append({"title": titles[key], "value": text + percent, "against": against})
    return tiles


def _table(table: Table) -> dict[str, Any]:
    groups, starts = grouped(table.columns)
    groups = [group | {"folds": group["name"] == ABILITY} for group in groups]
    base = next((row for _, row in table.frame.iterrows() if row["role"] == "baseline"), None)
    return {
        "groups": groups,
        "columns": [
            {"title": c.title, "help": c.help, "text": c.kind == "text", "group": c.group} for c in table.columns
        ],
        "rows": [
            {
                "arm": row["arm"],
                "role": row["role"],
                "note": row["note"],
                "cells": [cell(row, c, base) | {"start": c.key in starts, "group": c.group} for c in table.columns],
            }
            for _, row in table.frame.iterrows()
        ],
    }


def _metrics(run: RunFolder, table: Table) -> dict[str, Any]:
    """What the task reports of all answers together: a row per arm, and below it one per ability."""
    columns = [column for column in table.columns if column.group == METRICS]
    rows = []
    for arm in run.arms:
        mine = (run.run.get("metrics") or {}).get(arm.arm) or {}
        parts = [("", run.metrics(arm.arm)), *(mine.get("by_ability") or {}).items()]
        for ability, values in parts if columns else ():
            cells = [number(values.get(c.key.removeprefix("metric_")), c.kind) for c in columns]
            rows.append({"arm": arm.arm, "title": arm.title, "role": arm.role, "ability": ability, "cells": cells})
    return {"columns": [c.title for c in columns], "rows": rows}


def _cost(run: RunFolder, table: Table) -> dict[str, Any]:
    """Every convention that was measured: a row each, a column per arm."""
    frame = table.frame
    rows = [
        {
            "title": column.title,
            "key": column.key,
            "help": column.help.removeprefix(f"{column.key}: "),
            "cells": [cell(row, column) for _, row in frame.iterrows()],
        }
        for column in (column.of(run.unit) for column in COST)
        if frame[column.key].notna().any()
    ]
    return {"rows": rows, "hardware": run.cost.get("hardware", "")}


def _calibration(run: RunFolder) -> dict[str, Any] | None:
    if not run.calibration:
        return None
    known = {k: v for k, v in run.calibration.items() if k not in ("stages", "curves")}
    curves = run.calibration.get("curves") or {}
    return {
        "stages": [
            {"site": s.get("site") or f"llm.layer.{s.get('layer')}", "keep": keep_text(s.get("keep"))}
            | {"balance": DASH if s.get("balance") is None else f"{s['balance']:.3g}"}
            for s in run.calibration.get("stages") or ()
        ],
        "tau": curves.get("tau", DASH),
        "samples": curves.get("samples", DASH),
        "provenance": yaml.safe_dump(known, sort_keys=False).strip() if known else "",
    }


def _details(run: RunFolder) -> dict[str, Any]:
    return {
        "versions": run.run.get("versions") or {},
        "phases": {name: duration(seconds) for name, seconds in (run.run.get("phases") or {}).items()},
        "config": yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True).strip(),
    }
