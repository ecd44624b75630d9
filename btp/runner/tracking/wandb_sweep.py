"""The W&B run of a sweep as a whole: its comparison, its plots, and which W&B runs its cells are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import wandb

from btp.results.atomic import write_json
from btp.results.status import read_state
from btp.runner.identity import digest
from btp.runner.sweeps.cells import Cell
from btp.runner.tracking.groups import logger_of, sweep_id
from btp.runner.tracking.wandb_artifacts import label
from btp.runner.tracking.wandb_run import attempt
from btp.runner.tracking.wandb_session import NONE, ONLINE, described, mode, opened

COLUMNS = ("number", "state", "words", "starts", "reason", "run", "name", "url")
TABLE = "comparison.csv"
FILES = ("comparison.html", TABLE, "comparison.md", "comparison.tex", "study.db")


def track_sweep(folder: Path, cells: Sequence[Cell]) -> None:
    """Log a sweep, in the group of its cells; nothing where those have no logger, or nothing changed since.

    A sweep that goes on is the same W&B run. What goes wrong is said, and does not touch the sweep.

    Args:
        folder: Folder of the sweep, with its comparison.
        cells: Cells of the sweep.
    """
    logger = logger_of(folder)
    if logger is None or mode(logger) == NONE:
        return
    table = [_row(cell) for cell in cells]
    compared = (folder / TABLE).read_text(encoding="utf-8") if (folder / TABLE).exists() else ""
    content = digest(table, compared)
    if _noted(folder).get("content") != content:
        attempt(lambda: _log(logger, folder, table, content), folder, "the sweep")


def _log(logger: Mapping[str, Any], folder: Path, table: list[list[Any]], content: str) -> None:
    states = Counter(row[COLUMNS.index("state")] for row in table)
    runs = [row[COLUMNS.index("run")] for row in table]
    facts = {
        "name": folder.resolve().name,
        "group": logger["group"],
        "job_type": "sweep",
        "tags": ["sweep", *logger["tags"]],
        "config": json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
        | {"cells": [run for run in runs if run]},
    }
    with opened(logger, folder, sweep_id(folder), **facts) as tracked:
        tracked.summary.update({f"cells/{state}": count for state, count in states.items()} | {"cells/all": len(table)})
        tracked.log({"cells": wandb.Table(columns=list(COLUMNS), data=[*table])})
        if (folder / TABLE).exists():
            frame = pd.read_csv(folder / TABLE).astype(object)
            tracked.log({"comparison": wandb.Table(dataframe=frame.where(frame.notna(), None))})
            page = (folder / "comparison.html").read_text(encoding="utf-8")
            tracked.log({"comparison_page": wandb.Html(page, inject=False)})
        plots = {f"plots/{p.stem}": wandb.Image(str(p)) for p in sorted((folder / "figures").glob("*.png"))}
        if plots:
            tracked.log(plots)
        made = wandb.Artifact(label("comparison", folder.resolve().name, sweep_id(folder)[:8]), "comparison")
        for name in FILES:
            if (folder / name).exists():
                made.add_file(str(folder / name), name=name)
        if (folder / TABLE).exists():
            tracked.log_artifact(made)
        where = described(tracked)
    if where["mode"] == ONLINE:
        print(f"W&B: {where['url']}", flush=True)
    write_json(folder / "wandb.json", where | {"content": content})


def _row(cell: Cell) -> list[Any]:
    """A cell as the table of cells lists it, with the id of its W&B run."""
    found: dict[str, Any] = {}
    if cell.folder is not None and (Path(cell.folder) / "run.json").exists():
        found = read_state(Path(cell.folder)).get("wandb") or {}
    name = Path(cell.folder).name if cell.folder else ""
    own = (found.get("id") or "", name, found.get("url") or "")
    return [cell.number, cell.state, cell.words, cell.starts, cell.reason, *own]


def _noted(folder: Path) -> dict[str, Any]:
    note = folder / "wandb.json"
    return json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
