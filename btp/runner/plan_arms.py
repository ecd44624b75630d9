"""The arms of a run on a loaded model, each with a schedule that the engine accepts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from btp.engine.checks.plan import make_plan
from btp.models.loading.load import Loaded
from btp.runner.arms import Arm, build_arms
from btp.runner.calibration.sources import Finder
from btp.runner.devices import Machine
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
) -> list[Arm]:
    """Find or make what the stages come from, solve all schedules, and have the engine look at them.

    Args:
        config: resolved.
        checkpoint: identity of the model.
        store: where artefacts that runs share lie; `folder` gets a copy.
        totals: visual tokens of each sample, in any order, 0 where it has none.
        pictures: of a sample, the most.
        unequal: solve each sample for its own total also where these are equal, since others are to come.

    Raises:
        ValueError: nothing to prune, a budget that cannot be met, a schedule that the model or the engine refuses.
    """
    pictured = [total for total in totals if total]
    if not pictured and config["pruner"]["name"] != "none" and loaded.host.unit == "prompt tokens":
        raise ValueError("Every prompt is empty, so there is nothing to prune. Look at the task's samples.")
    if not pictured and config["pruner"]["name"] != "none":
        raise ValueError(
            "No sample shows a picture, so there is no visual token to prune. Correct the pictures of the task, raise "
            "limit, or set pruner=none."
        )
    host = loaded.host
    facts = facts_of(host, pictured or [0], pictures, unequal)
    finder = Finder(config, loaded, checkpoint, store, folder, machine, facts)
    arms, lines = build_arms(config, facts, Sources(finder.calibrated, finder.searched))
    for arm in arms:
        make_plan(host, arm.build(), arm.schedule)  # what the engine would refuse, before anything is answered
    if machine.leads:
        print(*lines, sep="\n", end="\n" if lines else "", flush=True)
    return arms
