"""The schedule that a method was published with, from its yaml, by model and setting."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

PAPER = "paper"


def with_published(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """For `schedule=paper`: the config with the pruner's published stages and settings in place of its own.

    Raises:
        ValueError: the pruner has none for this model, or no such setting; says which there are.
    """
    if config["schedule"]["kind"] != PAPER:
        return config
    pruner, asked = config["pruner"], config["schedule"]
    table = pruner.get("published") or {}
    model = asked["model"]
    if model not in table:
        if not table:
            raise ValueError(
                f"schedule=paper: pruner {pruner['name']!r} has no published schedule, for this or any model. "
                "Drop schedule=paper; its own stages are solved for the budget."
            )
        there = "; ".join(f"{name} ({', '.join(map(str, settings))})" for name, settings in table.items())
        raise ValueError(
            f"schedule=paper: pruner {pruner['name']!r} has no published schedule for model {model!r}. There are: "
            f"{there}. Set schedule.model to one of them to take its stages at the same share of this model's depth, "
            "or drop schedule=paper."
        )
    settings = {str(name): found for name, found in table[model].items()}
    wanted = str(asked["setting"]) if asked["setting"] is not None else next(iter(settings))
    if wanted not in settings:
        near = difflib.get_close_matches(wanted, settings, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"schedule.setting is {wanted!r}, but pruner {pruner['name']!r} was published for {model} with: "
            f"{', '.join(settings)}.{hint}"
        )
    found = settings[wanted]
    method = None if pruner["method"] is None else {**pruner["method"], **(found.get("method") or {})}
    stages = found["stages"]
    if model != config["model"]["name"]:
        stages = _shares(stages, model, asked["tokens"].get(model))
    changed = {**pruner, "schedule": stages, "method": method, "layer": None, "strategy": "given"}
    return {**config, "pruner": changed, "schedule": {**asked, "kind": "auto"}}


def _shares(stages: Sequence[Mapping[str, Any]], model: str, tokens: int | None) -> list[dict[str, Any]]:
    """Stages for another model: numbers of tokens become shares of that model's."""
    counted = [stage["keep"] for stage in stages if isinstance(stage["keep"], int) and stage["keep"] > 0]
    if tokens is None:
        if not counted:
            return [dict(stage) for stage in stages]
        raise ValueError(
            f"schedule.model is {model}, whose stages keep {counted} tokens, but how many it has is not known. "
            f"Set schedule.tokens.{model}, or run that model."
        )
    return [{**s, "keep": s["keep"] / tokens} if isinstance(s["keep"], int) and s["keep"] else dict(s) for s in stages]
