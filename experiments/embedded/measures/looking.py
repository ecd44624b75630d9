"""Answers of the embedded models that are a vision tower alone, under every arm, by their own way of answering."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from btp.engine.attach import attach
from btp.models.loading.load import Loaded
from btp.pruners.lattice import Lattice
from btp.runner.evaluation.data import Batch
from btp.runner.evaluation.oracle_targets import aim
from btp.runner.evaluation.ways.way import Row, Way
from btp.runner.evaluation.ways.way_of_task import way_of
from btp.tasks.detection.average_precision import average_precision
from btp.tasks.drawn import Drawn
from btp.tasks.sample import Sample
from experiments.embedded.measures.controls import (
    CHANCE,
    SHARES,
    Arm,
    Scores,
    blank,
    card,
    cut,
    load_embedded,
    percent,
    randoms,
    with_mean,
    withdrawals,
)

BATCH = 32
SITE = "vision.layer.0"
TOP1 = "top1"


def picture_arms(layers: int, between: Iterable[Arm] = ()) -> Iterator[Arm]:
    """Controls of a tower that sees one picture: `between` stands behind random selection."""
    yield Arm("unpruned")
    yield Arm("blank picture", picture="blank")
    yield from randoms(SITE)
    yield from between
    for share in SHARES:
        yield Arm(f"smaller picture {share:.1%}", cut(SITE, share), Lattice(), "shrunk", share)
    yield from withdrawals("vision", layers)


def measure_looking(
    name: str,
    checkpoint: Path,
    task: Drawn,
    arms: Callable[[int], Iterable[Arm]],
    acceptance: Callable[[Scores, int], list[dict]],
) -> dict:
    """Score every arm, and hold the scores against what the model must be.

    Args:
        name: Of the recipe.
        checkpoint: Folder of the model.
        task: Its samples.
        arms: Controls for a tower of so many layers; the first one is the unpruned model.
        acceptance: What is asked of the scores, for so many layers.

    Returns:
        scores (arm -> column -> percent), acceptance, tables.
    """
    loaded, way = load_embedded(name, checkpoint), way_of(task)
    samples = [task[i] for i in range(len(task))]
    way.check(loaded, samples)
    layers = len(loaded.host.towers["vision"].layers)
    scores: Scores = {}
    if way.name == "classify":
        scores[CHANCE] = percent(with_mean(task.chance(samples), TOP1))
    shown = _Shown(loaded, way, samples)
    for arm in tqdm(list(arms(layers)), desc="arms"):
        scores[arm.name] = percent(_columns(way, samples, _rows(loaded, way, shown, arm)))
    return card(task, scores, acceptance(scores, layers))


class _Shown:
    """Batches of all samples as an arm shows them; those of whole pictures are made once."""

    def __init__(self, loaded: Loaded, way: Way, samples: list[Sample]):
        self.collate, self.device, self.samples = way.collate(loaded.processor), loaded.host.device, samples
        self.whole = self._made("whole", 1.0)

    def of(self, arm: Arm) -> list[Batch]:
        return self.whole if arm.picture == "whole" else self._made(arm.picture, arm.share)

    def _made(self, picture: str, share: float) -> list[Batch]:
        parts = [self.samples[i : i + BATCH] for i in range(0, len(self.samples), BATCH)]
        if picture == "blank":
            parts = [[replace(s, images=tuple(map(blank, s.images))) for s in part] for part in parts]
        shares = share if picture == "shrunk" else 1.0
        return [self.collate(part, shares=[shares] * len(part)).to(self.device) for part in parts]


@torch.inference_mode()
def _rows(loaded: Loaded, way: Way, shown: _Shown, arm: Arm) -> dict[str, Row]:
    rows = {}
    with attach(loaded.host, arm.pruner, arm.schedule):
        for batch in shown.of(arm):
            aim(arm.pruner, batch.samples)
            answers, _ = way.answer(loaded, batch.inputs)
            rows |= {s.id: row for s, row in zip(batch.samples, answers, strict=True)}
    return rows


def _columns(way: Way, samples: list[Sample], rows: dict[str, Row]) -> dict[str, float]:
    """In [0, 1]. Classes: the likeliest one is right, and the same by ability. Boxes: AP, AP50, and AP50 by name."""
    if way.name == "classify":
        found: dict[str, list[float]] = {}
        for sample, score in zip(samples, way.scores(samples, rows), strict=True):
            found.setdefault(sample.ability, []).append(score)
        return with_mean({ability: sum(hits) / len(hits) for ability, hits in found.items()}, TOP1)
    truth, boxes = way.task.truth(samples), [rows[s.id]["boxes"] for s in samples]
    columns = {key: value for key, value in average_precision(truth, boxes).items() if key in ("AP", "AP50")}
    for category in truth["categories"]:
        name = category["name"]
        mine = truth | {"annotations": [a for a in truth["annotations"] if a["category_id"] == category["id"]]}
        of_name = [[box for box in image if box[0] == name] for image in boxes]
        if mine["annotations"]:
            columns[name] = average_precision(mine | {"categories": [category]}, of_name)["AP50"]
    return columns
