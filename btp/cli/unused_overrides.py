"""Refuses overrides without effect, whose keys the run does not read. No torch, but where a rule needs it.

Only what somebody typed counts: settings of the yamls may lie unused. In a sweep a word is left alone where another
word that has several values decides whether it is read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import Override

from btp.runner.pruner_lists import method_of
from btp.tasks.shown import short

Config = Mapping[str, Any]
SEARCH = "search"


@dataclass(frozen=True)
class Rule:
    """When settings are not read.

    Attributes:
        keys: settings, with all below them.
        unread: why they have no effect in a config, with what to do; None where they have one.
        depends: keys that decide it; those that end in a dot stand for all that begin so.
        spared: among `keys`, those that the rule is not about.
        said: a single value is said to have no effect, and not refused: other pruners of the same command read it.
    """

    keys: tuple[str, ...]
    unread: Callable[[Config], str | None]
    depends: tuple[str, ...]
    spared: tuple[str, ...] = ()
    said: bool = False


def fault_of_effects(overrides: Sequence[Override], config: Config) -> str | None:
    """Which word has no effect, and why; None where all have one.

    Args:
        overrides: words as they were typed.
        config: resolved, of the words with the first value of each.
    """
    swept = [o.key_or_group for o in overrides if o.is_sweep_override()]
    for override in overrides:
        key = override.key_or_group
        if override.is_delete() or override.package is not None or override.value() is None:
            continue
        for rule in RULES:
            if not _below(key, rule.keys) or _below(key, rule.spared):
                continue
            if any(_decides(other, rule.depends) for other in swept if other != key):
                continue
            reason = rule.unread(config)
            if not reason:
                continue
            told = f"{short(override.input_line)} has no effect: {reason}"
            if not rule.said or override.is_sweep_override():
                return told
            print(f"note: {told}", file=sys.stderr)
    return None


def _below(key: str, places: Sequence[str]) -> bool:
    return any(key == place or key.startswith(f"{place}.") for place in places)


def _decides(key: str, places: Sequence[str]) -> bool:
    return key == "experiment" or any(key == p or (p.endswith(".") and key.startswith(p)) for p in places)


def parts_of(pruner: Config) -> Mapping[str, Config]:
    """The pruners that a pruner is made of, by name: of most, itself alone."""
    return pruner.get("parts") or {pruner["name"]: pruner}


def takes_run_schedule(config: Config) -> bool:
    """Whether the stages of the run are those that the schedule group makes."""
    kind, pruner = config["schedule"]["kind"], config["pruner"]
    if pruner["name"] == "none" or kind == "paper":
        return False
    return kind != "auto" or any(part["schedule"] is None for part in parts_of(pruner).values())


def calibrates(config: Config) -> bool:
    """Whether the stages of the run come from a calibration."""
    return takes_run_schedule(config) and config["schedule"]["kind"] in ("auto", "calibrated")


def _searches(config: Config) -> bool:
    kind = config["schedule"]["kind"]
    parts = parts_of(config["pruner"]).values()
    layer = kind == "auto" and any(part.get("layer") == SEARCH for part in parts)
    return layer or (kind != "paper" and any(part.get("strategy") == SEARCH for part in parts))


def _no_stages(config: Config) -> str | None:
    pruner, kind = config["pruner"]["name"], config["schedule"]["kind"]
    if takes_run_schedule(config):
        named = calibrates(config) and config["calibration"]["artifact"]
        return f"the stages come from calibration.artifact={short(named)}. Drop one of them." if named else None
    if pruner == "none":
        return "pruner=none prunes nothing. Drop it, or choose a pruner."
    if kind == "paper":
        return "schedule=paper takes the published stages. Drop it, or choose schedule=uniform or schedule=calibrated."
    return _own_stages(config)


def _other_stages(config: Config) -> str | None:
    return None if _own_stages(config) else _no_stages(config)


def _own_stages(config: Config) -> str | None:
    pruner, kind = config["pruner"]["name"], config["schedule"]["kind"]
    if pruner == "none" or kind == "paper" or takes_run_schedule(config):
        return None
    return (
        f"pruner {pruner!r} brings its own stages. Drop it, or give it those of the run with schedule=uniform or "
        "schedule=calibrated."
    )


def _no_curves(config: Config) -> str | None:
    if calibrates(config) or not takes_run_schedule(config):
        return _no_stages(config)
    return f"schedule={config['schedule']['kind']} places its stages without it. Drop it, or set schedule=calibrated."


def _no_calibration(config: Config) -> str | None:
    if _searches(config):
        return None
    if calibrates(config):
        named = config["calibration"]["artifact"]
        return f"calibration.artifact={short(named)} is taken as it is. Drop one of them." if named else None
    return _nothing_calibrated(config)


def _nothing_calibrated(config: Config) -> str:
    return (
        f"nothing is calibrated with pruner={config['pruner']['name']} and schedule={config['schedule']['kind']}. Drop "
        "it, or set schedule=calibrated."
    )


def _no_artifact(config: Config) -> str | None:
    return None if calibrates(config) else _nothing_calibrated(config)


def _no_balance(config: Config) -> str | None:
    """A method has to be asked, which takes torch."""
    if not takes_run_schedule(config):
        return None
    from btp.runner.arms import build_method

    takes = [part for part in parts_of(config["pruner"]).values() if part["schedule"] is None] or [config["pruner"]]
    try:
        methods = [build_method(part["name"], method_of(part)) for part in takes]
    except ValueError:
        return None  # the run says what is wrong with its settings
    if any(method is not None and "balance" in method.stage_settings for method in methods):
        return None
    return f"pruner {config['pruner']['name']!r} does not read a stage's balance. Drop it."


def _no_training(config: Config) -> str | None:
    if config.get("action") == "train" and config["training"]["train"] == "host":
        return None
    parts = parts_of(config["pruner"]).values()
    if any(part.get("weights") == "auto" for part in (*parts, *(config.get("controls") or {}).values())):
        return None
    if any("weights" in part for part in parts):
        return "pruner.weights says which modules are taken. Drop it, or set pruner.weights=auto."
    return f"pruner={config['pruner']['name']} has nothing to train. Drop it."


def _no_host_rate(config: Config) -> str | None:
    if config["training"]["train"] == "both":
        return None
    return "training.train is modules. Drop it, or set training.train=both."


def _no_distil(config: Config) -> str | None:
    if config["training"]["distil"]["steps"]:
        return None
    return "training.distil.steps is 0, so nothing is distilled. Drop it, or set training.distil.steps."


def _no_budget(config: Config) -> str | None:
    return "pruner=none prunes nothing. Drop it, or choose a pruner." if config["pruner"]["name"] == "none" else None


def _no_cost(config: Config) -> str | None:
    if config["model"]["weights"] == "random" or config["cost"]["enabled"]:
        return None
    return "cost.enabled is false. Drop it, or set cost.enabled=true."


def _no_switch(config: Config) -> str | None:
    if config["model"]["weights"] != "random" or config["cost"]["enabled"]:
        return None
    return "costs are all that model.weights=random has. Drop it; cost.measure=false leaves it at formulas."


def _no_cache(config: Config) -> str | None:
    return None if config["cache"] else "cache is off. Drop it, or set cache=true."


def _no_search(config: Config) -> str | None:
    return (
        None if _searches(config) else "nothing is searched. Drop it, or let pruner.layer or pruner.strategy be search."
    )


def _no_own_stages(config: Config) -> str | None:
    kind = config["schedule"]["kind"]
    return None if kind == "auto" else f"schedule={kind} takes the place of the pruner's own stages. Drop one of them."


def _no_example(config: Config) -> str | None:
    if config["model"]["weights"] == "random":
        return None
    return "it is the picture for model.weights=random; with weights costs are measured on the task's own. Drop it."


_PLANNED = (
    "pruner",
    "pruner.schedule",
    "pruner.layer",
    "pruner.strategy",
    "pruner.parts.",
    "schedule",
    "schedule.kind",
)
_MODEL = ("model", "model.weights")
RULES = (
    Rule(("stages",), _other_stages, (*_PLANNED, "calibration.artifact")),
    Rule(("stages",), _own_stages, _PLANNED, said=True),
    Rule(("schedule.balance", "schedule.withdraw_last"), _no_stages, (*_PLANNED, "calibration.artifact")),
    Rule(("schedule.tau", "schedule.min_gap"), _no_curves, (*_PLANNED, "calibration.artifact")),
    Rule(("schedule.balance",), _no_balance, _PLANNED),
    Rule(("calibration",), _no_calibration, (*_PLANNED, "calibration.artifact"), ("calibration.artifact",)),
    Rule(("calibration.artifact",), _no_artifact, _PLANNED),
    Rule(("schedule", "budget"), _no_budget, ("pruner",)),
    Rule(("cost",), _no_cost, ("cost.enabled", *_MODEL), ("cost.enabled", "cost.measure")),
    Rule(("cost.enabled",), _no_switch, _MODEL),
    Rule(("cache_gib",), _no_cache, ("cache",)),
    Rule(("training.host_rate",), _no_host_rate, ("training.train",)),
    Rule(("training.distil",), _no_distil, ("training.distil.steps",), ("training.distil.steps",)),
    Rule(("training", "pruner.losses"), _no_training, ("pruner", "pruner.weights", "pruner.parts.", "controls.")),
    Rule(("pruner.search",), _no_search, _PLANNED),
    Rule(("pruner.layer", "pruner.schedule"), _no_own_stages, _PLANNED),
    Rule(("model.example",), _no_example, _MODEL),
)
