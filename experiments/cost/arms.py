"""Which methods are measured, and with which stages: those of a run, at one budget, without a calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from btp.core.schedule import Schedule
from btp.engine.checks.plan import make_plan
from btp.models.lvlm import LVLM
from btp.results.shipped import CONF
from btp.runner.arms import Arm, build_arms
from btp.schedules.meet import facts_of
from btp.schedules.plan import Sources

LEFT_OUT = ("none", "withdraw")  # the baseline is beside every method; withdraw is vtw without a budget
# Methods whose stages a calibration would choose get those that BTP was published with, at the same share of the depth.
STAGES = (
    {"site": "llm.layer.3/32", "keep": "fit", "balance": 0.6},
    {"site": "llm.layer.6/32", "keep": "fit*0.5", "balance": 0.8},
    {"site": "llm.layer.14/32", "keep": "fit*0.25", "balance": 1.0},
)


def all_pruners() -> list[str]:
    """Every method and control that prunes the tokens of pictures: those of the cache have another budget."""
    paths = [path for path in (CONF / "pruner").glob("*.yaml") if path.stem not in LEFT_OUT]
    others = ("tower: vision", "site: llm.cache", "picture: none")
    return sorted(path.stem for path in paths if not any(mark in path.read_text(encoding="utf-8") for mark in others))


def composed(*words: str) -> dict[str, Any]:
    """The resolved config of a run's command line, without controls; the nearest budget in reach is taken."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides=["budget.nearest=true", *words])
        resolved: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    return resolved | {"controls": {}, "command": ""}


def make_arm(config: Mapping[str, Any], host: LVLM, total: int, pictures: int = 1) -> Arm:
    """The config's pruner with a solved schedule for this model, held against what the engine can do.

    Args:
        config: of `composed`.
        host: the model.
        total: visual tokens of a prompt.
        pictures: of a prompt.

    Raises:
        ValueError: the method does not apply to this model.
    """
    facts = facts_of(host, total, pictures)
    pruner = with_stages(config["pruner"])
    given = Sources(calibrated=list, searched=lambda pruner: {**pruner, "strategy": "given"})
    arms, _ = build_arms({**config, "pruner": pruner}, facts, given)
    arm = arms[1]
    make_plan(host, arm.build(), arm.schedule)
    return arm


def with_stages(pruner: Mapping[str, Any]) -> dict[str, Any]:
    """A pruner, or each part of a composition, with stages where it has none of its own."""
    if pruner.get("parts"):
        return {**pruner, "parts": {name: with_stages(part) for name, part in pruner["parts"].items()}}
    if pruner["schedule"] is not None:
        return dict(pruner)
    known = {"site", "keep", *instantiate(pruner["method"]).stage_settings}
    return {**pruner, "schedule": [{k: v for k, v in stage.items() if k in known} for stage in STAGES]}


def planned(schedule: Schedule, total: int, layers: int) -> list[int]:
    """Visual tokens that a solved schedule leaves to each decoder layer, of `total`."""
    alive = [total] * layers
    for stage in schedule:
        if stage.moves_prefill:
            alive[stage.site.first_layer :] = [stage.count(total)] * (layers - stage.site.first_layer)
    return alive


def named(asked: Sequence[str]) -> list[str]:
    """The pruners that were asked for by name, or "all".

    Raises:
        ValueError: there is no such pruner.
    """
    known = all_pruners()
    for name in asked:
        if name not in (*known, "all"):
            raise ValueError(f"--pruner is {name}, and there is no such method. Choose from: all, {', '.join(known)}.")
    return known if "all" in asked else list(asked)
