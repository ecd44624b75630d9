"""The arms of a run: the unpruned model, the pruner and its controls, each with a solved schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hydra.utils import instantiate

from btp.core.keep import FIT
from btp.core.pruner import Pruner
from btp.core.schedule import Schedule, Stage
from btp.ops.calibration import uniform_stages
from btp.runner.identity import code, digest, method_code

UNPRUNED = "unpruned"


@dataclass(frozen=True)
class Facts:
    """What schedules are solved against.

    Attributes:
        layers: decoder layers.
        total: visual tokens of the task's first sample, before any pruning.
    """

    layers: int
    total: int


@dataclass(frozen=True)
class Arm:
    """One way to answer the task.

    Attributes:
        name: unique in the run.
        role: baseline | method | control.
        method: the yaml's `method` node; None decides nothing (the schedule keeps all or none).
        schedule: solved stages.
        picture: full | shrunk (to as many pixels as the kept tokens cover).
    """

    name: str
    role: str
    method: Mapping[str, Any] | None
    schedule: Schedule
    picture: str = "full"

    @classmethod
    def unpruned(cls) -> Arm:
        """The model as it is: the same path with nothing scheduled."""
        return cls(UNPRUNED, "baseline", None, Schedule())

    def build(self) -> Pruner | None:
        """Instantiate the method."""
        return _build(self.name, self.method)

    def identity(self, shared: str) -> str:
        """Names the answers of this arm; `shared` is the identity of model and task."""
        target = self.method["_target_"] if self.method else None
        own = digest(self.method, self.schedule.to_config(), self.picture, method_code(target))
        return digest(shared, own)

    def describe(self) -> dict[str, Any]:
        """The arm as run.json lists it."""
        return {
            "arm": self.name,
            "title": self.name.replace("_", " "),
            "role": self.role,
            "pruner": self.method["_target_"].rsplit(".", 1)[1].lower() if self.method else "none",
            "picture": self.picture,
            "schedule": self.schedule.to_config(),
        }


def build_arms(config: Mapping[str, Any], facts: Facts, calibrated: Callable[[], list[dict]]) -> list[Arm]:
    """Compose and solve all arms; controls get the tokens_avg that the method reached.

    Args:
        config: the resolved config.
        facts: of model and task.
        calibrated: calibrates, or finds the artefact, and returns its stages; called only where needed.

    Raises:
        ValueError: a budget that cannot be met or has no effect, a layer the model does not have, a setting the
            method does not know.
    """
    arms = [Arm.unpruned()]
    pruner, root = config["pruner"], config["schedule"]
    if pruner["name"] != "none":
        planned = _planned(pruner, root, config, facts, calibrated)
        wanted = _wanted(config, planned, facts)
        main = _arm(pruner, "method", _solve(planned, facts, wanted))
        arms.append(main)
        reached = main.schedule.tokens_avg(facts.total, facts.layers)
        for name, control in (config["controls"] or {}).items():
            if control["name"] == pruner["name"]:
                continue
            stages = Schedule.from_config(control["schedule"]) if control["schedule"] is not None else main.schedule
            arms.append(_arm(control | {"name": name}, "control", _solve(stages, facts, reached)))
    for arm in arms:
        arm.schedule.check(facts.layers)
        method = arm.build()
        if method is not None:
            method.check(arm.schedule)
    return arms


def shared_identity(config: Mapping[str, Any], checkpoint: str) -> str:
    """Names what all arms share: model, task, seed and the code that runs them."""
    model = {k: config["model"][k] for k in ("weights", "config", "dtype", "attention")}
    sources = code("core", "engine", "models", "tasks", "runner/evaluate.py", "runner/batches.py")
    task = {k: v for k, v in config["task"].items() if k != "reading"}
    return digest(model, checkpoint, task, config["seed"], sources)


def inert(schedule: Schedule) -> Schedule:
    """The same stages, keeping everything."""
    return Schedule(tuple(replace(stage, keep=1.0) for stage in schedule))


def _planned(
    pruner: Mapping, root: Mapping, config: Mapping, facts: Facts, calibrated: Callable[[], list[dict]]
) -> Schedule:
    kind = root["kind"]
    if kind == "auto" and pruner["schedule"] is not None:
        return Schedule.from_config(pruner["schedule"])
    if kind in ("auto", "calibrated"):
        stages: Sequence[Mapping[str, Any]] = calibrated()
    elif kind == "uniform":
        stages = uniform_stages(
            config["stages"], facts.layers, balance=root["balance"], withdraw_last=root["withdraw_last"]
        )
    else:
        stages = root["stages"]
    return _for_method(Schedule.from_config(stages), pruner)


def _for_method(schedule: Schedule, pruner: Mapping) -> Schedule:
    """Leave out settings of a shared schedule that this method does not know, such as BTP's balance for random."""
    method = _build(pruner["name"], pruner["method"])
    known = method.stage_settings if method is not None else frozenset()

    def strip(stage: Stage) -> Stage:
        return replace(stage, settings={k: v for k, v in stage.settings.items() if k in known})

    return Schedule(tuple(strip(stage) for stage in schedule))


def _arm(pruner: Mapping, role: str, schedule: Schedule) -> Arm:
    schedule = _for_method(schedule, pruner) if role == "control" else schedule
    return Arm(pruner["name"], role, pruner["method"], schedule, pruner.get("picture", "full"))


def _wanted(config: Mapping, schedule: Schedule, facts: Facts) -> float | None:
    """The budget in layer-averaged tokens, or None where the schedule leaves nothing to solve."""
    tokens, share = config["budget"]["tokens"], config["budget"]["share"]
    free = any(stage.keep == FIT for stage in schedule)
    if not free:
        asked = [w for w in config["command"].split() if w.startswith("budget.") and not w.endswith("=null")]
        if asked:
            raise ValueError(
                f"{asked[0]} has no effect: every stage of schedule {config['schedule']['kind']!r} for pruner "
                f"{config['pruner']['name']!r} says itself how much it keeps. Drop the budget, or write keep: fit."
            )
        return None
    if tokens is None and share is None:
        raise ValueError("The schedule has keep: fit, but no budget is set. Set budget.share or budget.tokens.")
    return tokens if tokens is not None else share * facts.total


def _solve(schedule: Schedule, facts: Facts, tokens: float | None) -> Schedule:
    if tokens is None or not any(stage.keep == FIT for stage in schedule):
        return schedule
    return schedule.solve_fit(facts.total, facts.layers, tokens)


def _build(name: str, method: Mapping[str, Any] | None) -> Pruner | None:
    if method is None:
        return None
    try:
        return instantiate(dict(method))
    except Exception as error:
        reason = error.__cause__ or error
        raise ValueError(f"pruner {name!r} cannot be built from its yaml: {reason}. Correct pruner.method.") from error
