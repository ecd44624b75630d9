"""The arms of a run on a loaded model, each with a schedule that the engine accepts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from btp.core.host import PROMPT_TOKENS
from btp.engine.checks.plan import make_plan
from btp.models.loading.load import Loaded
from btp.runner.arms import Arm, build_arms, build_method
from btp.runner.calibration.sources import Finder
from btp.runner.devices import Machine
from btp.runner.evaluation.oracle_targets import Targeted
from btp.schedules.meet import facts_of
from btp.schedules.plan import Sources


def plan_arms(
    config: Mapping[str, Any],
    loaded: Loaded,
    checkpoint: str,
    store: Path,
    folder: Path,
    machine: Machine,
    totals: Sequence[int],
    pictures: int = 1,
    unequal: bool = False,
    aimed: bool = True,
) -> list[Arm]:
    """Find or make what the stages come from, solve all schedules, and have the engine look at them.

    Args:
        config: resolved.
        checkpoint: identity of the model.
        store: Folder of the artifacts that runs share; `folder` gets a copy.
        totals: visual tokens of each sample, in any order, 0 where it has none.
        pictures: Pictures of a sample, the most.
        unequal: solve each sample for its own total also where these are equal, since others are to come.
        aimed: samples say what their answers need; otherwise controls that go by it are left out.

    Raises:
        ValueError: nothing to prune, a budget that cannot be met, a schedule that the model or the engine refuses.
    """
    pictured = [total for total in totals if total]
    if not pictured and config["pruner"]["name"] != "none" and loaded.host.unit == PROMPT_TOKENS:
        raise ValueError("Every prompt is empty, so there is nothing to prune. Look at the task's samples.")
    if not pictured and config["pruner"]["name"] != "none":
        raise ValueError(
            "No sample shows a picture, so there is no visual token to prune. Correct the pictures of the task, raise "
            "limit, or set pruner=none."
        )
    if not aimed and config.get("controls"):
        kept = _without_targets(config["controls"])
        if machine.leads and len(kept) < len(config["controls"]):
            left = ", ".join(name for name in config["controls"] if name not in kept)
            print(f"left out: {left}, since no sample says which boxes its answer needs", flush=True)
        config = {**config, "controls": kept}
    host = loaded.host
    facts = facts_of(host, pictured or [0], pictures, unequal)
    finder = Finder(config, loaded, checkpoint, store, folder, machine, facts)
    arms, lines = build_arms(config, facts, Sources(finder.calibrated, finder.searched))
    for arm in arms:
        make_plan(host, arm.build(), arm.schedule)  # what the engine would refuse, before anything is answered
    if machine.leads:
        print(*lines, sep="\n", end="\n" if lines else "", flush=True)
    return arms


def _without_targets(controls: Mapping[str, Any]) -> dict[str, Any]:
    """The controls that need not be told what an answer needs."""
    built = {name: build_method(name, control["method"]) for name, control in controls.items()}
    return {name: controls[name] for name, method in built.items() if not isinstance(method, Targeted)}
