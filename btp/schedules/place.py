"""Sites that a yaml writes for models of any depth, and the layers they mean in one model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from btp.core.keep import FIT, fit_times
from btp.core.schedule import PART, Schedule, Stage
from btp.core.site import Site

_RELATIVE = re.compile(r"^(llm\.layer|llm\.cache|vision\.layer|vision\.mlp)\.(\d+)/(\d+)$")
_SPAN = re.compile(r"^(llm\.cache)\.(\d+)/(\d+)-(\d+)/(\d+)$")
_EVERY = re.compile(r"^(vision\.(?:layer|mlp))\.\*$")


def nearest_layer(layer: int, depth: int, layers: int) -> int:
    """The layer of a model of `layers` layers at the share of the depth that `layer` of `depth` layers stands for."""
    nearest = (2 * layer * layers + depth) // (2 * depth)
    return min(max(nearest, min(layer, 1)), layers - 1)


def place_stages(
    stages: Sequence[Mapping[str, Any]], num_layers: int, vision_layers: int = 0, tower_layers: int = 0
) -> list[dict[str, Any]]:
    """Turn the sites of a schedule's config into sites of one model.

    `llm.layer.8/32` is layer 8 of a model of 32 layers: the layer at the same share of this model's depth, halves
    rounded up, never layer 0 unless it says 0, and never beyond the last. A stage that falls on another's layer by
    that takes its place, as does one that is the same as another; where the first `fit` is gone then, the first `fit*X`
    becomes it and the others refer to that. `llm.cache.8/32` is placed likewise, and `llm.cache.*` stays as it is;
    `llm.cache.8/32-24/32` becomes one stage for each layer from that of 8/32 up to the one in front of that of 24/32.
    `vision.layer.1/2` and `vision.mlp.1/2` mean the same of the vision tower up to the layer that the projector reads.
    `vision.mlp.*` (or `vision.layer.*`) becomes one stage for each layer of the vision tower up to the one that the
    projector reads. Other sites stay as they are. A setting that is a site at a share of the depth, a layer that the
    method looks at, is placed alike.

    Args:
        stages: Stages as `Schedule.from_config` reads them.
        num_layers: decoder layers of the model.
        vision_layers: layers of its vision tower up to and with the one the projector reads; 0 where none can be cut.
        tower_layers: the same where layers can be looked at and not cut, since tokens are pooled behind them.

    Returns:
        Stages with plain sites, in the same order; sorted by their sites where one of them stood for several layers of
        the cache, which lie among those of others.

    Raises:
        ValueError: a relative site lies outside its own depth, or one of the tower is written for a model without one.
    """
    placed: list[tuple[str, bool, dict[str, Any]]] = []  # site, whether it is relative, stage
    for i, stage in enumerate(stages):
        text, relative = str(stage.get("site")), False
        every, share, span = _EVERY.match(text), _RELATIVE.match(text), _SPAN.match(text)
        if not vision_layers and (every or share) and text.startswith("vision."):
            raise ValueError(
                f"schedule.{i}.site is {text}, but this model has no vision tower whose layers can be cut. "
                f"Choose a method that works in the language model, or set pruner.schedule.{i}.site=llm.input where "
                "the method can."
            )
        if found := every:
            sites = [f"{found[1]}.{layer}" for layer in range(vision_layers)]
        elif span:
            ends = [nearest_layer(int(span[i]), int(span[i + 1]), num_layers) for i in (2, 4)]
            sites, relative = [f"llm.cache.{layer}" for layer in range(*ends)], True
        elif share:
            sites, relative = [_layer_of(f"schedule.{i}.site", share, num_layers, vision_layers)], True
        else:
            sites = [text]
        looks = {
            key: _RELATIVE.match(value) for key, value in stage.items() if isinstance(value, str) and key != "site"
        }
        seen = {
            k: _layer_of(f"schedule.{i}.{k}", at, num_layers, vision_layers or tower_layers)
            for k, at in looks.items()
            if at
        }
        for site in sites:
            mine = {**stage, **seen, "site": site} if "site" in stage else dict(stage)
            placed = [other for other in placed if other[0] != site or not (relative or other[1] or other[2] == mine)]
            placed.append((site, relative, mine))
    found = [stage for _, _, stage in placed]
    if any(_SPAN.match(str(stage.get("site"))) for stage in stages):
        found.sort(key=lambda stage: Site.parse(stage["site"]))
    return _rebased(stages, found)


def _layer_of(key: str, share: re.Match[str], num_layers: int, vision_layers: int) -> str:
    """The site of one model that a site at a share of the depth means."""
    layer, depth = int(share[2]), int(share[3])
    layers = num_layers if share[1].startswith("llm.") else vision_layers
    if layer >= depth:
        raise ValueError(f"{key} is {share[0]}, beyond its own {depth} layers. Write a lower layer.")
    if not layers:
        raise ValueError(
            f"{key} is {share[0]}, but the layers of this model's vision tower cannot be looked at. Choose a "
            "method that works in the language model."
        )
    return f"{share[1]}.{nearest_layer(layer, depth, layers)}"


def lies_between(stage: Stage, tower: str) -> bool:
    """True for a stage in front of a layer of the tower."""
    return stage.site.tower == tower and stage.site.kind == "layer"


def move_stages(
    schedule: Schedule, by: int, movable: Callable[[Stage], bool] = lambda stage: True, tower: str = "llm"
) -> Schedule:
    """Move stages in front of a tower's layers towards its input, all by the same number of layers.

    None goes past layer 0. Stages that fall together become one, the last of them, as in `place_stages`.

    Args:
        schedule: solved or not.
        by: layers, 0 or more.
        movable: which stages may move at all.
        tower: whose layers; stages in another tower stay.

    Raises:
        ValueError: a stage falls on one that does not move or belongs to another method, or passes it.
    """
    moved: dict[str, dict[str, Any]] = {}
    owner: dict[str, tuple[bool, Any]] = {}
    for stage in schedule:
        entry = stage.to_config()
        moves = lies_between(stage, tower) and movable(stage)
        site = f"{tower}.layer.{max(0, stage.site.layer - by)}" if moves else entry["site"]
        mine = (moves, stage.settings.get(PART))
        if owner.get(site, mine) != mine:
            raise ValueError(f"Moved by {by} layers, two stages that are not one method's would both lie at {site}.")
        owner[site] = mine
        moved.pop(site, None)
        moved[site] = entry | {"site": site}
    return Schedule.from_config(_rebased(schedule.to_config(), list(moved.values())))


def _rebased(asked: Sequence[Mapping[str, Any]], left: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give `fit*X` stages another one to refer to, where the first fit of `asked` is no longer among those `left`."""
    found = list(left)
    for part in {stage.get(PART): None for stage in left}:
        mine = [i for i, stage in enumerate(left) if stage.get(PART) == part]
        had = any(stage.get("keep") == FIT and stage.get(PART) == part for stage in asked)
        times = {i: x for i in mine if (x := fit_times(left[i].get("keep"))) is not None}
        if not had or not times or any(left[i].get("keep") == FIT for i in mine):
            continue
        first = min(times)
        for i, x in times.items():
            found[i] = left[i] | {"keep": FIT if i == first else f"{FIT}*{x / times[first]:g}"}
    return found
