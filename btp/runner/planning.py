"""The arms of a run on a loaded model, each with a schedule that the engine accepts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from btp.engine.plan import make_plan
from btp.models.load import Loaded
from btp.runner.arms import Arm, build_arms
from btp.runner.budget import facts_of
from btp.runner.finder import Finder
from btp.runner.machine import Machine
from btp.runner.stages import Sources


def plan_arms(
    config: Mapping[str, Any],
    loaded: Loaded,
    checkpoint: str,
    store: Path,
    folder: Path,
    machine: Machine,
    total: int,
    pictures: int = 1,
    unequal: bool = False,
) -> list[Arm]:
    """Find or make what the stages come from, solve all schedules, and have the engine look at them.

    Args:
        config: resolved.
        checkpoint: identity of the model.
        store: where artefacts that runs share lie; `folder` gets a copy.
        total: visual tokens of the first sample that has any, from its `pictures`.
        unequal: other samples have other numbers, so that a budget.share is one of each sample's own.

    Raises:
        ValueError: nothing to prune, a budget that cannot be met, a schedule that the model or the engine refuses.
    """
    if total < 1 and config["pruner"]["name"] != "none":
        raise ValueError(
            "No sample shows a picture, so there is no visual token to prune. Correct the pictures of the task, raise "
            "limit, or set pruner=none."
        )
    host = loaded.host
    unequal = unequal and config["budget"]["tokens"] is None
    facts = facts_of(host, total, pictures, unequal)
    finder = Finder(config, loaded, checkpoint, store, folder, machine, facts)
    arms, lines = build_arms(config, facts, Sources(finder.calibrated, finder.searched))
    for arm in arms:
        make_plan(host, arm.build(), arm.schedule)  # what the engine would refuse, before anything is answered
    if machine.leads:
        print(*lines, sep="\n", end="\n" if lines else "", flush=True)
    return arms
