"""Schedules and budgets as run.json has them: for a reader, and to be solved again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from btp.core.schedule import Schedule
from btp.schedules.budget import Budget, PerSample
from btp.schedules.meet import TOLERANCE


def described(schedule: Schedule) -> dict[str, Any]:
    """A schedule as plain values.

    Returns:
        `schedule`, its stages. Where each sample is solved for its own total, keep is "fit" there, and `solver` holds
        what solves it: the stages before their budget, and the budget.
    """
    solver = next((stage.solver for stage in schedule if isinstance(stage.solver, PerSample)), None)
    found: dict[str, Any] = {"schedule": schedule.to_config()}
    if solver is not None:
        budget = {key: getattr(solver.budget, key) for key in ("layers", "tokens", "share")}
        budget |= {"tower": solver.budget.tower} if solver.budget.tower != "llm" else {}
        if solver.budget.like is not None:
            budget["like"] = described(solver.budget.like)
        found["solver"] = {
            "stages": Schedule(solver.stages).to_config(),
            "budget": {key: value for key, value in budget.items() if value is not None},
        }
    return found


def restored(entry: Mapping[str, Any]) -> Schedule:
    """The schedule that `described` made plain values of. Where it has a solver, keeps are read from that."""
    if "solver" not in entry:
        return Schedule.from_config(entry["schedule"])
    asked = dict(entry["solver"]["budget"])
    if "like" in asked:
        asked["like"] = restored(asked["like"])
    before = Schedule.from_config(entry["solver"]["stages"])
    solver = PerSample(before.stages, Budget(**asked))
    free = {stage.site: stage.keep for stage in before if stage.is_free}
    stages = []
    for written in entry["schedule"]:
        (stage,) = Schedule.from_config([written])
        keep = free.get(stage.site)
        stages.append(stage if keep is None else replace(stage, keep=keep, solver=solver))
    return Schedule(tuple(stages))


def off_budget(asked: float | None, reached: float | None) -> bool:
    """Whether what was reached differs from what was asked by more than a run passes over."""
    return asked is not None and reached is not None and abs(reached - asked) > TOLERANCE * asked


def budget_entry(asked: float | None, reached: float | None) -> dict[str, Any]:
    """A budget as run.json lists it: `missed` is there where the two differ by more than 2%."""
    short = [None if tokens is None else round(tokens, 4) for tokens in (asked, reached)]
    return {"asked": short[0], "reached": short[1]} | ({"missed": True} if off_budget(asked, reached) else {})


def what_happened(budget: Budget | None, asked: float | None, reached: float, totals: Sequence[int]) -> dict[str, Any]:
    """The budget of an arm after its samples were answered.

    Args:
        budget: what each sample was asked; None where the arm has none.
        asked: what was planned.
        reached: mean over the samples.
        totals: visual tokens of each sample before any pruning.
    """
    if budget is None or asked is None:
        return budget_entry(asked, reached)
    return budget_entry(sum(budget.asked(total) for total in totals) / len(totals), reached)


def missed_lines(arm: str, entry: Mapping[str, Any], totals: Sequence[int], budget: Budget | None) -> list[str]:
    """Lines for the screen about a missed budget; none where it was met."""
    if not entry.get("missed"):
        return []
    wanted = None if budget is None else budget.tokens
    few = 0 if wanted is None else sum(0 < total < wanted for total in totals)
    why = f"; {few} of {len(totals)} samples have fewer than {wanted:g} before any pruning" if few else ""
    asked, reached = (f"{entry[key]:.2f}" for key in ("asked", "reached"))
    return [f"budget: {asked} visual tokens on average were asked of {arm}, {reached} were reached{why}"]
