"""The schedule that a method was published with, from its yaml, by model and setting."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
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
        there = "; ".join(f"{name} ({', '.join(map(str, settings))})" for name, settings in table.items()) or "none"
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
    changed = {**pruner, "schedule": found["stages"], "method": method, "layer": None, "strategy": "given"}
    return {**config, "pruner": changed, "schedule": {**asked, "kind": "auto"}}
