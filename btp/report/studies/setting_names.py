"""Display names of the settings that a study varies."""

from __future__ import annotations

TITLES = {
    "budget.share": "budget",
    "calibration.dataset.abilities": "questions about",
    "calibration.samples": "pictures",
    "model.name": "model",
    "pruner.layer": "layer",
    "pruner.method.distance": "distance",
    "pruner.method.over": "candidates a token",
    "pruner.method.score": "ranked by",
    "pruner.method.seed": "spatial seed",
    "pruner.method.source": "attention of",
    "pruner.name": "method",
    "pruner.schedule.0.balance": "lambda of the first stage",
    "pruner.schedule.0.scratch": "from scratch at the first stage",
    "schedule.balance.first": "lambda of the first stage",
    "schedule.balance.last": "lambda of the last stage",
    "schedule.kind": "schedule",
    "schedule.withdraw_last": "withdrawal at the end",
    "slots_share": "KV slots, %",
    "tokens_share": "visual tokens, %",
}
VALUES = {("calibration.dataset.abilities", "null"): "anything"}


def title(key: str) -> str:
    """A setting in words; the end of its key where there are none."""
    return TITLES.get(key) or key.rsplit(".", 1)[-1].replace("_", " ")


def setting(key: str, value: str) -> str:
    """A setting with its value, as `spatial seed 0.25` or `without withdrawal at the end`."""
    if value in ("true", "false"):
        return f"{'with' if value == 'true' else 'without'} {title(key)}"
    shown = VALUES.get((key, value), value)
    return shown if key == "model.name" else f"{title(key)} {shown}"
