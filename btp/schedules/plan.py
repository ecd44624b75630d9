"""Which stages a run plans: the pruner's own, the run's, or those of several pruners that are composed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from btp.core.cache_pruner import every_of
from btp.core.keep import is_fit
from btp.core.pruner import Pruner
from btp.core.schedule import IN_DECODE, PART, Schedule, Stage
from btp.core.site import Site
from btp.schedules.calibrated import uniform_stages
from btp.schedules.meet import FREE_LAYER, Facts, Planned
from btp.schedules.place import place_stages

Entries = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Sources:
    """Where stages come from that no yaml holds.

    Attributes:
        calibrated: calibrates, or finds the artifact, and returns its stages.
        searched: takes a pruner's config and returns it with what a search found, where it asks for one.
    """

    calibrated: Callable[[], Entries]
    searched: Callable[[Mapping[str, Any]], Mapping[str, Any]]


def plan(config: Mapping[str, Any], facts: Facts, build: Callable[[Mapping], Pruner | None], found: Sources) -> Planned:
    """The stages of the run's pruner, at sites of this model, with `fit` where a budget decides.

    Args:
        config: resolved.
        facts: Facts of model and task.
        build: makes a pruner's method.
        found: for stages that no yaml holds.

    Raises:
        ValueError: a site that the model does not have, a schedule without effect, parts that get in each other's way.
    """
    pruner, root = config["pruner"], config["schedule"]
    if pruner.get("tower", facts.tower) != facts.tower:
        raise ValueError(
            f"pruner {pruner['name']!r} is for models without a language model (its yaml says tower: vision), and this "
            "one has one. Choose another pruner, or such a model: docs/vision_models.md lists them."
        )
    if pruner.get("parts"):
        return _composed(config, facts, build, found)
    if root["kind"] == "auto" and pruner["schedule"] is not None:
        return _own(pruner, facts)
    return Planned(for_method(Schedule.from_config(_of_run(config, facts, found)), build(pruner)))


def for_method(schedule: Schedule, method: Pruner | None) -> Schedule:
    """Leave out settings of a shared schedule that this method does not know, such as BTP's balance for random, and
    `every: 1`, which goes without saying: so methods that say it share their controls with those that do not.
    """
    own = method.stage_settings if method is not None else frozenset()

    def strip(stage: Stage) -> Stage:
        known = own | frozenset(IN_DECODE if stage.in_decode else ())
        known -= frozenset({"every"} if every_of(stage) == 1 else ())
        return replace(stage, settings={k: v for k, v in stage.settings.items() if k in known})

    return Schedule(tuple(strip(stage) for stage in schedule))


def _of_run(config: Mapping[str, Any], facts: Facts, found: Sources) -> Entries:
    """The stages of the schedule group."""
    root = config["schedule"]
    if root["kind"] == "calibrated" or (root["kind"] == "auto" and facts.tower == "llm"):
        if facts.tower == "vision":
            raise ValueError(
                "schedule=calibrated looks at what a picture does in a language model, and this model has none. Choose "
                "schedule=auto or schedule=uniform."
            )
        return found.calibrated()
    balance, last = root.get("balance"), root.get("withdraw_last", False)
    stages = uniform_stages(config["stages"], facts.layers, balance=balance, withdraw_last=last)
    return [{**stage, "site": stage["site"].replace("llm.", f"{facts.tower}.")} for stage in stages]


def _own(pruner: Mapping[str, Any], facts: Facts) -> Planned:
    """The stages of the pruner's yaml; a `layer` beside them says where its only stage lies."""
    stages, layer = pruner["schedule"], pruner.get("layer")
    if layer is not None:
        if len(stages) != 1 or is_fit(stages[0]["keep"]):
            raise ValueError(
                f"pruner.layer is {layer!r}, but pruner {pruner['name']!r} has {len(stages)} stages and layer is for "
                "one stage that says itself what it keeps. Remove pruner.layer, or all stages but that one."
            )
        stages = [dict(stages[0]) | {"site": f"{facts.tower}.layer.{0 if layer == FREE_LAYER else layer}"}]
    if facts.tower == "vision":  # behind its last layer nothing is left to compute
        stages = [stage for stage in stages if stage.get("site") != "vision.output"] or stages
    placed = Schedule.from_config(place_stages(stages, facts.layers, facts.vision_layers, facts.tower_layers))
    return Planned(placed, lambda stage: True, layer == FREE_LAYER)


def _composed(
    config: Mapping[str, Any], facts: Facts, build: Callable[[Mapping], Pruner | None], found: Sources
) -> Planned:
    """The stages of all parts, in the order of their sites, each with the name of its part."""
    parts, root = config["pruner"]["parts"], config["schedule"]
    open_parts = [name for name, part in parts.items() if part["schedule"] is None]
    if len(open_parts) > 1:
        raise ValueError(
            f"pruner.parts {' and '.join(open_parts)} both have schedule: null, but the run's schedule can go to one "
            f"of them. Write the stages of the other, as pruner.parts.{open_parts[1]}.schedule=[...]."
        )
    if root["kind"] != "auto" and not open_parts:
        raise ValueError(
            f"schedule={root['kind']} has no effect: every part of pruner {config['pruner']['name']!r} brings its own "
            "stages. Drop it, or set pruner.parts.<part>.schedule=null."
        )
    entries: list[tuple[Site, dict[str, Any]]] = []
    for name, part in parts.items():
        if part["schedule"] is None:
            mine = for_method(Schedule.from_config(_of_run(config, facts, found)), build(part))
        elif part.get("layer") == FREE_LAYER:
            raise ValueError(
                f"pruner.parts.{name}.layer is {FREE_LAYER}, but in a composition the budget decides what the other "
                f"parts keep. Set pruner.parts.{name}.layer to a layer."
            )
        else:
            mine = _own(part, facts).schedule
        if not mine:
            raise ValueError(f"pruner.parts.{name} has no stage, so it would do nothing. Give it one, or leave it out.")
        entries += [(stage.site, stage.to_config() | {PART: name}) for stage in mine]
    entries.sort(key=lambda entry: entry[0])
    for (site, one), (other, two) in pairwise(entries):
        if site == other:
            raise ValueError(
                f"pruner.parts {one[PART]} and {two[PART]} both work at {site}, where one of them has to. Move a "
                f"stage: pruner.parts.{two[PART]}.schedule."
            )
    schedule = Schedule.from_config([entry for _, entry in entries])
    return Planned(schedule, lambda stage: stage.settings[PART] not in open_parts)
