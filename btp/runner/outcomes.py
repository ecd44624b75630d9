"""What a finished run came to, as flat numbers under the names that dashboards and searches use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from btp.runner.arms import UNPRUNED


def outcomes(run: Path) -> dict[str, float]:
    """Of the run's method: accuracy, tokens_avg, agreement, kl, every ability, `metric/...` of the task, `cost/...`.

    The same of every arm, as `ARM/...` and `cost/ARM/...`. Without answers there are only costs.

    Args:
        run: the folder of a finished run.
    """
    state = json.loads((run / "run.json").read_text())
    found = corpus(state.get("metrics") or {}) | costs(run)
    if (run / "samples.parquet").exists():
        found |= summary(pd.read_parquet(run / "samples.parquet"))
    method = method_arm(state)
    for prefix, short in ((f"{method}/", ""), (f"cost/{method}/", "cost/")):
        found |= {short + key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
    return found


def method_arm(state: Mapping[str, Any]) -> str:
    """The arm that a run is about: its method's, the unpruned one where there is none.

    Args:
        state: run.json.
    """
    return next((arm["arm"] for arm in state["arms"] if arm["role"] == "method"), UNPRUNED)


def corpus(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What the task itself makes of each arm's answers, flat.

    Args:
        metrics: arm -> {all: {metric: value}, by_ability: {ability: {metric: value}}}.
    """
    found = {}
    for arm, parts in metrics.items():
        found |= {f"{arm}/metric/{name}": value for name, value in parts["all"].items()}
        for ability, own in parts["by_ability"].items():
            found |= {f"{arm}/metric/{name}/{ability}": value for name, value in own.items()}
    return {key: value for key, value in found.items() if isinstance(value, int | float)}


def summary(frame: pd.DataFrame) -> dict[str, float]:
    """Scores of every arm, over all and by ability."""
    out: dict[str, float] = {}
    for (arm, ability), score in frame.groupby(["arm", "ability"])["score"].mean().items():
        out[f"{arm}/{ability}"] = score
    by_arm = frame.groupby("arm")
    for arm, rows in by_arm:
        out[f"{arm}/accuracy"] = rows.groupby("ability")["score"].mean().mean()
        for key in ("tokens_avg", "agreement", "kl"):
            out[f"{arm}/{key}"] = float(rows[key].mean())
    return out


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
