"""The arms of a run on a loaded model, each with a schedule that the engine accepts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from btp.engine.plan import make_plan
from btp.models.load import Loaded
from btp.runner.arms import Arm, build_arms
from btp.runner.budget import Facts
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
) -> list[Arm]:
    """Find or make what the stages come from, solve all schedules, and have the engine look at them.

    Args:
        config: resolved.
        checkpoint: identity of the model.
        store: where artefacts that runs share lie; `folder` gets a copy.
        total: visual tokens of the first sample, from its `pictures`.

    Raises:
        ValueError: a budget that cannot be met, a schedule that the model or the engine refuses.
    """
    host = loaded.host
    tower = host.towers.get("vision")
    cuttable = tower is not None and tower.feature is not None
    facts = Facts(host.num_layers, total, tower.feature + 1 if cuttable else 0, pictures)
    finder = Finder(config, loaded, checkpoint, store, folder, machine, facts)
    arms, lines = build_arms(config, facts, Sources(finder.calibrated, finder.searched))
    for arm in arms:
        make_plan(host, arm.build(), arm.schedule)  # what the engine would refuse, before anything is answered
    if machine.leads:
        print(*lines, sep="\n", end="\n" if lines else "", flush=True)
    return arms
