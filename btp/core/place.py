"""Sites that a yaml writes for models of any depth, and the layers they mean in one model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_RELATIVE = re.compile(r"^(llm\.layer)\.(\d+)/(\d+)$")
_EVERY = re.compile(r"^(vision\.(?:layer|mlp))\.\*$")


def place_stages(stages: Sequence[Mapping[str, Any]], num_layers: int, vision_layers: int = 0) -> list[dict[str, Any]]:
    """Turn the sites of a schedule's config into sites of one model.

    `llm.layer.8/32` is layer 8 of a model of 32 layers: the layer at the same share of this model's depth, halves
    rounded up, and never layer 0 unless it says 0. Stages that fall on one layer become one, the last of them.
    `vision.mlp.*` (or `vision.layer.*`) becomes one stage for each layer of the vision tower up to the one that the
    projector reads. Other sites stay as they are.

    Args:
        stages: as `Schedule.from_config` reads them.
        num_layers: decoder layers of the model.
        vision_layers: layers of its vision tower up to and with the one the projector reads; 0 without a tower.

    Returns:
        Stages with plain sites, in the same order.

    Raises:
        ValueError: a relative site lies outside its own depth, or a vision site is written for a model without tower.
    """
    placed: dict[str, dict[str, Any]] = {}
    for i, stage in enumerate(stages):
        text = str(stage.get("site"))
        if found := _EVERY.match(text):
            if not vision_layers:
                raise ValueError(
                    f"schedule.{i}.site is {text}, but this model has no vision tower whose layers can be cut. "
                    "Choose a method that works in the language model."
                )
            sites = [f"{found[1]}.{layer}" for layer in range(vision_layers)]
        elif found := _RELATIVE.match(text):
            layer, depth = int(found[2]), int(found[3])
            if layer >= depth:
                raise ValueError(f"schedule.{i}.site is {text}, beyond its own {depth} layers. Write a lower layer.")
            nearest = (2 * layer * num_layers + depth) // (2 * depth)
            sites = [f"{found[1]}.{max(nearest, min(layer, 1))}"]
        else:
            sites = [text]
        for site in sites:
            placed.pop(site, None)
            placed[site] = {**stage, "site": site} if "site" in stage else dict(stage)
    return list(placed.values())
