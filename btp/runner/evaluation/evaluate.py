"""Answers the task's questions with one arm, sample by sample to disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from btp.core.pruner import Pruner
from btp.engine.attach import attach
from btp.models.loading.load import Loaded
from btp.models.vision_cache import PictureFeatures, Shelf
from btp.runner.arms import Arm
from btp.runner.devices import Machine
from btp.runner.evaluation.answer_store import ANSWER, Answers
from btp.runner.evaluation.data import Feed
from btp.runner.evaluation.ways.way_of_task import way_of
from btp.tasks.sample import Sample, Task


def answer(
    loaded: Loaded,
    arm: Arm,
    task: Task,
    samples: Sequence[Sample],
    feed: Feed,
    order: list[int],
    folder: Path,
    reference: Path | None,
    features: Shelf | None,
    machine: Machine,
    totals: Mapping[str, int] | None = None,
) -> dict[str, dict[str, Any]]:
    """Answer what is still open of `order`, and return the rows of all of it.

    Args:
        samples: of the task, of which `feed` makes batches; `order` holds indices into them, as they are batched.
        folder: Folder of this arm's answers; `reference` that of the unpruned ones.
        features: Cache of projected pictures; None has every arm compute its own.
        totals: visual tokens of each sample without pruning, for an arm whose pictures are shrunk to fewer.
    """
    answers = Answers(folder, machine.rank, ANSWER)
    done = answers.rows()
    todo = machine.agree([i for i in order if samples[i].id not in done])  # others may have begun to write
    if todo:
        pruner = arm.build()
        shares = {}
        if arm.picture == "shrunk" and reference is not None:
            each = {i: (totals or {})[samples[i].id] for i in todo}
            shares = {i: arm.schedule[0].count(n) / n for i, n in each.items() if n}
        elif arm.picture == "none":
            shares = dict.fromkeys(todo, 0.0)
        ready = None
        if features is not None and blind_to_pictures(arm, pruner) and PictureFeatures.fits(loaded.host):
            ready = PictureFeatures(loaded.host, features, sum(len(s.images) for s in samples))
        batches = feed.batches(todo[machine.rank :: machine.world], machine.batch.used, shares)
        with attach(loaded.host, pruner, arm.schedule) as trace:
            unpruned = Answers(reference) if reference else None
            module = way_of(task).evaluate(
                loaded, pruner, trace, task, answers, unpruned, batches, machine.batch, ready
            )
            machine.trainer(f"answer: {arm.name}", batches.total).test(module, batches, verbose=False)
        machine.sync()  # the other processes' rows count too
        done = answers.rows()
    return {samples[i].id: done[samples[i].id] for i in order}


def blind_to_pictures(arm: Arm, pruner: Pruner | None) -> bool:
    """Whether an arm leaves pictures as they are, and neither cuts nor looks inside the vision tower."""
    if arm.picture != "full" or any(stage.site.tower == "vision" for stage in arm.schedule):
        return False
    if pruner is None:
        return True
    chosen = [stage for stage in arm.schedule if not stage.withdraws_all]
    return not any(s.site.tower == "vision" for stage in chosen for s in pruner.needs(stage))
