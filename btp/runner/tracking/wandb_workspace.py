"""Lays out a W&B workspace over logged runs: accuracy against tokens, abilities, cost, overlays, samples, sweeps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from btp.results.find import run_folders
from btp.results.reader import read_frame
from btp.results.run_folder_schema import SAMPLES

PATIENCE_S = 20
NAME = "btp: accuracy against tokens"
COSTS = {
    "KV cache, MiB": "cost/kv_mib",
    "Prefill, times the unpruned": "cost/prefill_ratio/median",
    "Visual FLOPs": "cost/flops_visual_pdrop",
    "Selection, ms": "cost/selection_ms/median",
    "Peak memory, MiB": "cost/peak_memory_mib",
}
COLUMNS = ("config:budget_tag", "summary:accuracy", "summary:tokens_avg", "summary:agreement", "summary:cost/kv_mib")


def abilities(folder: Path) -> list[str]:
    """What the answered samples below a folder ask for, sorted; nothing where no run is there."""
    files = [run / "samples.parquet" for run in run_folders(folder)] if folder.is_dir() else []
    found = [read_frame(file, {"ability": SAMPLES["ability"]})["ability"] for file in files if file.exists()]
    return sorted({str(name) for column in found for name in column})


def workspace(project: str, entity: str, asked: Sequence[str]) -> Any:
    """The workspace, not yet saved.

    A point is a run, a bar the mean of a pruner's runs; what a sweep's own run holds has a section at the end.

    Args:
        project: Project in W&B.
        entity: user or team.
        asked: abilities to draw bars for, as runs log them.

    Raises:
        ValueError: wandb-workspaces is not installed.
    """
    ws, wr = _library()
    by_pruner = wr.Config("pruner.name")

    def bars(metric: str, title: str) -> Any:
        return wr.BarPlot(title=title, metrics=[metric], groupby=by_pruner, groupby_aggfunc="mean", orientation="h")

    def against(x: str, y: str, title: str, log: bool = False) -> Any:
        axes = {"x": wr.SummaryMetric(x), "y": wr.SummaryMetric(y)}
        return wr.ScatterPlot(title=title, **axes, log_x=log, legend_template="${run:displayName} ${config:budget_tag}")

    whole = [
        against("tokens_avg", "accuracy", "Accuracy against visual tokens averaged over layers"),
        against("cost/prefill_ratio/median", "accuracy", "Accuracy against prefill time, times the unpruned"),
        against("cost/flops_visual_pdrop", "accuracy", "Accuracy against visual FLOPs", log=True),
        against("tokens_avg", "agreement", "Agreement with the unpruned model's answers"),
    ]
    by_ability = [bars(name, name) for name in asked] or [wr.WeavePanelSummaryTable(table_name="by_ability")]
    sections = {
        "Accuracy against tokens": whole,
        "By ability": by_ability,
        "Cost": [bars(key, title) for title, key in COSTS.items()],
        "Kept tokens": [wr.MediaBrowser(title="Overlays", media_keys=["overlays"], num_columns=3)],
        "Samples": [_wide(wr, "samples")],
        "Figures": [wr.MediaBrowser(media_keys=[f"figures/{name}" for name in ("calibration", "tokens_per_layer")])],
        "Sweeps": [_wide(wr, "comparison"), _wide(wr, "cells")],
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections.items()],
        settings=ws.WorkspaceSettings(max_runs=100),
        runset_settings=ws.RunsetSettings(
            pinned_columns=[*COLUMNS]
        ),  # grouped runs would be one point in the scatter plots
    )


def spec(space: Any) -> dict[str, Any]:
    """A workspace as W&B stores it."""
    return json.loads(
        space._to_model().model_dump_json(by_alias=True)
    )  # the library has no public way without a server


def publish(space: Any) -> str:
    """Save a workspace in W&B.

    Returns:
        Its URL.

    Raises:
        ValueError: the server refused it, or did not answer.
    """
    import requests
    import wandb

    try:
        return space.save().url
    except (wandb.Error, requests.RequestException, ValueError, KeyError) as error:
        raise ValueError(f"W&B did not take the workspace: {' '.join(repr(error).split())}") from None


def default_entity() -> str:
    """Of whoever is logged in; asks the server.

    Raises:
        ValueError: it does not say.
    """
    import requests
    import wandb

    try:
        found = wandb.Api(timeout=PATIENCE_S).default_entity
    except (wandb.Error, requests.RequestException) as error:
        raise ValueError(f"W&B does not say who is logged in: {' '.join(str(error).split())}") from None
    if not found:
        raise ValueError("W&B knows no default entity for this login. Name one with --entity.")
    return found


def _wide(wr: ModuleType, table: str) -> Any:
    return wr.WeavePanelSummaryTable(table_name=table, layout=wr.Layout(w=24, h=12))


def _library() -> tuple[ModuleType, ModuleType]:
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError:
        raise ValueError(
            "a workspace is laid out with wandb-workspaces, which is not installed. "
            "Run: pip install -r requirements-wandb.txt. Runs are logged without it."
        ) from None
    return workspaces, reports
