"""Logs the training of a pruner's modules to W&B from their folder: curves, settings, what it came to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from btp.pruners.trained_folder import read_card
from btp.results.atomic import write_json
from btp.runner.tracking.wandb_run import attempt
from btp.runner.tracking.wandb_session import NONE, described, mode, opened
from btp.runner.training.train import CURVE

RECORD = "wandb.json"  # in the folder of the modules: where the curves are


def track_training(config: Mapping[str, Any], folder: Path) -> None:
    """Log finished modules, unless an earlier start did; what goes wrong is said and does not touch them.

    Args:
        config: Config of the run, resolved.
        folder: Folder of the modules.
    """
    if mode(config["logger"]) == NONE or (folder / RECORD).exists():
        return
    attempt(lambda: _log(config, folder), folder, "this training", config["debug"])


def _log(config: Mapping[str, Any], folder: Path) -> None:
    logger, card = config["logger"], read_card(folder)
    model, pruner, data = (config[group]["name"] for group in ("model", "pruner", "training"))
    facts = {
        "name": f"{model}-{pruner}-training",
        "group": logger["group"] or f"{model}/{data}",
        "job_type": "training",
        "tags": list(dict.fromkeys([model, pruner, data, "training", *logger["tags"]])),
        "config": card,
    }
    with opened(logger, folder, card["identity"], **facts) as tracked:
        phase, before, last = None, 0, 0
        for line in (folder / CURVE).read_text(encoding="utf-8").splitlines():
            point = json.loads(line)
            if point.get("pruner") != phase:  # each phase counts its steps from 1, and W&B drops a step that goes back
                phase, before = point.get("pruner"), last
            last = before + point["step"]
            values = {f"training/{k}": v for k, v in point.items() if isinstance(v, float | int) and k != "step"}
            tracked.log(values, step=last)
        tracked.summary.update({f"gap/{k}": v for k, v in card["gap"].items()})
        where = described(tracked)
    write_json(folder / RECORD, where)
