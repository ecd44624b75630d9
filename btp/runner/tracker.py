"""Logs a finished run to W&B: config, summary, tables, pictures, the calibration artefact."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import wandb
import yaml
from lightning.pytorch.loggers import WandbLogger

from btp.runner.arms import UNPRUNED


def check_login(logger: Mapping[str, Any]) -> None:
    """Refuse an online logger without a login, before anything is computed.

    Raises:
        ValueError: says how to log in, or how to do without.
    """
    if logger["name"] != "none" and logger["mode"] == "online" and not wandb.api.api_key:
        raise ValueError(
            "logger=wandb logs online, but no login is found. Run `wandb login` or set WANDB_API_KEY; "
            "logger=offline keeps the log on disk for `wandb sync`, logger=none does without."
        )


def track(config: Mapping[str, Any], run: Path, frame: pd.DataFrame, arms: list[dict[str, Any]]) -> None:
    """Write one W&B run for a run folder; nothing where the logger is none.

    Group, job type and tags come from the composed choices, so that a dashboard groups by model, pruner and
    budget. The W&B run's id is the identity's, so that a second start of the same run is the same W&B run.

    Args:
        run: the run folder, with its report.
        frame: one row per arm and sample.
        arms: as run.json lists them.
    """
    logger = config["logger"]
    if logger["name"] == "none":
        return
    state = json.loads((run / "run.json").read_text())
    os.environ.setdefault("WANDB_DATA_DIR", str(run / "wandb-data"))
    Path(os.environ["WANDB_DATA_DIR"]).mkdir(parents=True, exist_ok=True)
    budget = budget_tag(config)
    names = [config["model"]["name"], config["pruner"]["name"], config["task"]["name"]]
    tracker = WandbLogger(
        project=logger["project"],
        entity=logger["entity"],
        name=run.name,
        id=state["identity"],
        save_dir=run,
        offline=logger["mode"] == "offline",
        group=logger["group"] or f"{names[0]}/{names[2]}",
        job_type=names[1],
        tags=[*names, budget, f"schedule={config['schedule']['kind']}", *logger["tags"]],
        config={**config, "identity": state["identity"], "budget_tag": budget},
        settings=wandb.Settings(silent=True, init_timeout=60),
    )
    experiment = tracker.experiment
    method = next((a["arm"] for a in arms if a["role"] == "method"), UNPRUNED)
    experiment.summary.update(summary(frame, method) | costs(run))
    columns = [
        "arm",
        "sample",
        "ability",
        "question",
        "reference",
        "prediction",
        "score",
        "unpruned",
        "agreement",
    ]
    experiment.log({"samples": wandb.Table(dataframe=frame[columns])})
    means = frame.groupby(["arm", "ability"])["score"].mean().reset_index()
    experiment.log({"accuracy_by_ability": wandb.Table(dataframe=means)})
    experiment.log(
        {"overlays": [wandb.Image(str(p), caption=p.stem) for p in sorted((run / "overlays").glob("*.png"))]}
    )
    experiment.log({f"figures/{p.stem}": wandb.Image(str(p)) for p in sorted((run / "figures").glob("*.png"))})
    if (run / "report.html").exists():
        experiment.log({"report": wandb.Html((run / "report.html").read_text(), inject=False)})
    if (run / "calibration.yaml").exists():
        artefact = wandb.Artifact(f"calibration-{names[0]}-{names[1]}", "calibration")
        artefact.metadata = yaml.safe_load((run / "calibration.yaml").read_text())
        artefact.add_file(str(run / "calibration.yaml"))
        experiment.log_artifact(artefact)
    experiment.finish()


def budget_tag(config: Mapping[str, Any]) -> str:
    """The budget as a tag that sorts and groups."""
    tokens, share = config["budget"]["tokens"], config["budget"]["share"]
    if tokens is not None:
        return f"tokens={tokens:g}"
    return f"share={share:g}" if share is not None else "budget=schedule"


def summary(frame: pd.DataFrame, method: str) -> dict[str, float]:
    """Scores of every arm by ability, and of the method alone under short names."""
    out: dict[str, float] = {}
    for (arm, ability), score in frame.groupby(["arm", "ability"])["score"].mean().items():
        out[f"{arm}/{ability}"] = score
    by_arm = frame.groupby("arm")
    for arm, rows in by_arm:
        out[f"{arm}/accuracy"] = rows.groupby("ability")["score"].mean().mean()
        for key in ("tokens_avg", "agreement", "kl"):
            out[f"{arm}/{key}"] = float(rows[key].mean())
    return out | {key.split("/", 1)[1]: value for key, value in out.items() if key.startswith(f"{method}/")}


def costs(run: Path) -> dict[str, float]:
    """The numbers of cost.json, flat."""
    path = run / "cost.json"
    flat: dict[str, float] = {}

    def walk(node: Any, key: str) -> None:
        if isinstance(node, dict):
            for k, v in node.items():
                walk(v, f"{key}/{k}")
        elif isinstance(node, int | float) and not isinstance(node, bool):
            flat[key] = node

    if path.exists():
        walk(json.loads(path.read_text()), "cost")
    return flat
