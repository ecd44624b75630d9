"""The arms of a run: the unpruned model, the pruner and its controls, each with a solved schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from btp.core.host import PROMPT_TOKENS
from btp.core.keep import FIT
from btp.core.pruner import Pruner
from btp.core.schedule import Schedule, Stage
from btp.core.site import Site
from btp.results.status import UNPRUNED
from btp.runner.harness.settings import shared_part
from btp.runner.identity import code, code_of, digest, model_identity
from btp.runner.pruner_lists import method_of
from btp.runner.sources import modules_of
from btp.runner.targets import make
from btp.schedules.budget import Budget
from btp.schedules.meet import Facts, Met, Planned, meet, wanted_budget
from btp.schedules.place import place_stages
from btp.schedules.plan import Sources, for_method, plan
from btp.schedules.published import with_published
from btp.schedules.serialize import budget_entry, described, missed_lines, off_budget, what_happened
from btp.schedules.slots import fit_slots, in_cache, over_steps

BARE = ("site", "keep", "positions", "phase", "scope", "every")  # of a cache stage: nothing that one method knows


@dataclass(frozen=True)
class Arm:
    """One way to answer the task.

    Attributes:
        name: unique in the run.
        role: baseline | method | control.
        method: the yaml's `method` node; None decides nothing (the schedule keeps all or none).
        schedule: solved stages.
        picture: full | shrunk (to as many pixels as the kept tokens cover) | none (a text's context is left out).
        asked: its budget in layer-averaged visual tokens; None where it has none.
        reached: what its schedule comes to; None where that is not known yet.
        moved: layers by which its stages were moved towards the input to meet the budget.
        note: what a reader should know about it.
        budget: what each sample is asked; None as `asked`.
        shares: Shares of the original tokens that a stage keeps on average, by site, where each sample is solved alone.
    """

    name: str
    role: str
    method: Mapping[str, Any] | None
    schedule: Schedule
    picture: str = "full"
    asked: float | None = None
    reached: float | None = None
    moved: int = 0
    note: str = ""
    budget: Budget | None = None
    shares: Mapping[Site, float] = field(default_factory=dict)

    @classmethod
    def unpruned(cls, total: float | None = None) -> Arm:
        """The model as it is: the same path with nothing scheduled."""
        return cls(UNPRUNED, "baseline", None, Schedule(), reached=total)

    def build(self) -> Pruner | None:
        """Instantiate the method."""
        return build_method(self.name, self.method)

    def identity(self, shared: str) -> str:
        """Names the answers of this arm; `shared` is the identity of model and task."""
        own = digest(placeless(self.method), described(self.schedule), self.picture, code_of(self.method))
        return digest(shared, own)

    def describe(self) -> dict[str, Any]:
        """The arm as run.json lists it."""
        solved = described(self.schedule)
        for stage, entry in zip(self.schedule, solved["schedule"], strict=True):
            entry["keep"] = round(self.shares.get(stage.site, 0.0), 6) if stage.solver is not None else stage.keep
        return {
            "arm": self.name,
            "title": self.name.replace("_", " "),
            "role": self.role,
            "pruner": self.method["_target_"].rsplit(".", 1)[1].lower() if self.method else "none",
            "picture": self.picture,
            **solved,
            "budget": budget_entry(self.asked, self.reached),
            "moved": self.moved,
            "note": self.note,
        }


def build_arms(config: Mapping[str, Any], facts: Facts, found: Sources) -> tuple[list[Arm], list[str]]:
    """Compose and solve all arms; controls get the tokens_avg that the method reached.

    Args:
        config: the resolved config.
        facts: Facts of model and task.
        found: for stages that no yaml holds.

    Returns:
        The arms, and what the budget made of the method's schedule, as lines for the screen.

    Raises:
        ValueError: a budget that cannot be met or has no effect, a layer the model does not have, a setting the
            method does not know.
    """
    arms = [Arm.unpruned(facts.mean())]
    config, lines = with_published(config), []
    if config["pruner"]["name"] != "none":
        given = config["pruner"]  # as controls are before modules and settings are found for them
        pruner = found.searched(given)
        config = {**config, "pruner": pruner}
        planned = plan(config, facts, lambda one: build_method(one["name"], one["method"]), found)
        slots = facts.mean() + (facts.unit == PROMPT_TOKENS)
        fitted = fit_slots(planned.schedule, config["budget"], facts.layers, slots)
        slotted, planned = fitted != planned.schedule, replace(planned, schedule=fitted)
        asked = wanted_budget(config, planned, facts, slotted)
        method, node = build_method(pruner["name"], method_of(pruner)), method_of(pruner)
        budget = {key: config["budget"][key] for key in ("move", "nearest")}
        met = meet(planned, facts, asked, method, **budget)
        picture = pruner.get("picture", "full")
        name = pruner["name"]
        main = Arm(name, "method", node, met.schedule, picture, met.asked, met.reached, met.moved, budget=met.budget)
        arms.append(main)
        lines = _say(main, met, planned, facts.unit)
        for name, control in (config.get("controls") or {}).items():
            mine = at_cache(control, main.schedule)
            same = name == pruner["name"] or all(control.get(k) == given.get(k) for k in ("name", "weights", "method"))
            if not same and mine is not None:
                ready = found.searched(mine) if "weights" in mine else mine
                arms.append(_control({**ready, "name": name}, main, facts))
    for arm in arms:
        arm.schedule.check(facts.layers)
        method = arm.build()
        if method is not None:
            method.check(arm.schedule)
    return [replace(arm, shares=_shares(arm.schedule, facts)) for arm in arms], lines


def listed(
    arms: Sequence[Arm], rows: Mapping[str, Mapping[str, Any]], unit: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """The arms as run.json lists them, with budgets as means over what was answered, and lines on those missed."""
    totals = [row["total"] for row in rows[UNPRUNED].values()]
    listing, lines = [], []
    for arm in arms:
        reached = [sum(row["visual"]) / len(row["visual"]) for row in rows[arm.name].values()]
        budget = what_happened(arm.budget, arm.asked, sum(reached) / len(reached), totals)
        slots = [row.get("slots_avg" if over_steps(arm.schedule) else "slots") for row in rows[arm.name].values()]
        held_slots = None if None in slots else round(sum(slots) / len(slots), 4)
        listing.append(arm.describe() | {"budget": budget, "slots": held_slots})
        lines += [line.replace("visual tokens", unit) for line in missed_lines(arm.name, budget, totals, arm.budget)]
    return listing, lines


def budget_of_method(listing: list[dict[str, Any]]) -> dict[str, Any]:
    """The budget of the method's arm, of the unpruned one where there is none."""
    return next((entry["budget"] for entry in listing if entry["role"] == "method"), listing[0]["budget"])


def shared_identity(config: Mapping[str, Any], checkpoint: str) -> str:
    """Names what all arms share: model, task, seed and the code that runs them."""
    model = model_identity(config["model"])
    named = modules_of(config["task"], {"_target_": config["model"]["adapter"]})
    sources = code("btp.runner.evaluation.evaluate", *named)
    return digest(model, checkpoint, shared_part(config["task"]), config["seed"], sources)


def placeless(method: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """A method without the folder of its modules, which their digest names."""
    return {k: v for k, v in method.items() if k != "weights"} if method and "digest" in method else method


def inert(schedule: Schedule) -> Schedule:
    """The same stages, keeping everything; without those that keep nothing, unless there are no others."""
    chosen = [stage for stage in schedule if not stage.withdraws_all] or schedule
    return Schedule(tuple(replace(stage, keep=1.0) for stage in chosen))


def at_cache(control: Mapping[str, Any], schedule: Schedule) -> Mapping[str, Any] | None:
    """A control beside stages that are all in the K/V cache: its `slots` method at these, without what protects slots
    there. None where it chooses tokens and has no such method; as it is beside other stages, and where it chooses
    nothing.
    """
    if not in_cache(schedule) or control["method"] is None or _evicts(control):
        return control
    if not control.get("slots"):
        return None
    stages = [{k: v for k, v in s.to_config().items() if k in BARE} for s in schedule]
    return {**control, "method": control["slots"], "schedule": stages}


def _evicts(pruner: Mapping[str, Any]) -> bool:
    return any(str(stage["site"]).startswith("llm.cache") for stage in pruner["schedule"] or ())


def _control(control: Mapping[str, Any], main: Arm, facts: Facts) -> Arm:
    """A control at the tokens that the method reached: at the method's stages, unless it has its own."""
    note, own = "", control["schedule"]
    if control.get("parts"):
        raise ValueError(
            f"controls.{control['name']} is a composition, which has no stages for another method's sites. Make it the "
            "pruner of a run of its own."
        )
    if own is not None:
        schedule = Schedule.from_config(place_stages(own, facts.layers, facts.vision_layers, facts.tower_layers))
    elif all(stage.withdraws_all for stage in main.schedule):
        site = "llm.input" if facts.tower == "llm" else "vision.layer.0"
        schedule = Schedule((Stage(Site.parse(site), FIT),))
        note = f"At {site}, since {main.name} leaves nothing to choose at its own stage."
    else:
        schedule = main.schedule
    schedule = for_method(schedule, build_method(control["name"], control["method"]))
    if in_cache(schedule):
        own_slots = next((stage.keep for stage in main.schedule if stage.site.kind == "cache"), None)
        schedule = Schedule(tuple(replace(s, keep=own_slots) if s.is_free and own_slots else s for s in schedule))
    free = schedule.has_fit
    level = Budget(facts.layers, like=main.schedule, tower=facts.tower)
    met = meet(Planned(schedule), facts, level if free else None, None, move=False, nearest=True)
    picture, level = control.get("picture", "full"), level if free or own is None else None
    arm = Arm(control["name"], "control", control["method"], met.schedule, picture, None, met.reached, 0, note)
    return replace(arm, asked=main.reached, budget=level) if level is not None else arm


def _shares(schedule: Schedule, facts: Facts) -> dict[Site, float]:
    """What the stages that each sample is solved for keep on average, as shares."""
    solved = [stage for stage in schedule if stage.solver is not None]
    return {stage.site: facts.mean(stage.count) / facts.mean() for stage in solved}


def _say(arm: Arm, met: Met, planned: Planned, unit: str) -> list[str]:
    """What a reader of the screen should know about the method's budget."""
    lines = []
    if met.moved:
        sites = [", ".join(str(stage.site) for stage in schedule) for schedule in (planned.schedule, met.schedule)]
        layers = "1 layer" if met.moved == 1 else f"{met.moved} layers"
        lines.append(
            f"budget: stages of {arm.name} moved {layers} towards the input, from {sites[0]} to {sites[1]} "
            "(budget.move=false leaves them where they are)"
        )
    if met.missed:
        lines.append(
            f"budget: {met.asked:.2f} {unit} on average were asked; the nearest that {arm.name} reaches is "
            f"{met.reached:.2f} (budget.nearest=true takes it)"
        )
    elif arm.budget is not None and arm.budget.tokens is not None and off_budget(met.asked, met.reached):
        lines.append(
            f"budget: {met.asked:.2f} {unit} on average were asked; {arm.name} reaches {met.reached:.2f}, since "
            "some samples have fewer before any pruning, or more than its stages can take away"
        )
    return lines


def build_method(name: str, method: Mapping[str, Any] | None) -> Pruner | None:
    """Instantiate the method of a pruner's yaml; None where it has none.

    Raises:
        ValueError: its class is not there, or refuses its settings.
    """
    if method is None:
        return None
    try:
        return make(method, Pruner, "pruner.method")
    except Exception as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"pruner {name!r} cannot be built from its yaml: {reason}. Correct pruner.method.") from error
