"""Class names; compared by the name, and by the distribution over all classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from btp.models.loading.load import Loaded
from btp.runner.evaluation.data import Batch
from btp.runner.evaluation.ways.evaluation_loop import Evaluate
from btp.runner.evaluation.ways.label_names import names_of
from btp.runner.evaluation.ways.single_forward import Looking
from btp.runner.evaluation.ways.way import DOES, Row
from btp.tasks.metric import mean
from btp.tasks.sample import Sample

BEST = 5  # classes that a row holds


class Classifying(Evaluate):
    """Names the likeliest class."""

    def __init__(self, loaded: Loaded, pruner: Any, trace: Any, task: Any, *more: Any):
        super().__init__(loaded, pruner, trace, task, *more)
        self.names = names_of(loaded.host.labels, task)

    def say(self, inputs: Mapping[str, Any], batch: Batch) -> tuple[list[dict[str, Any]], Tensor]:
        """The likeliest classes, best first, and [B, C] log-probabilities, of their mean over views where there are
        several (as VideoMAE's code has it).
        """
        return _named(self.host, self.names, inputs)


def _named(host: Any, names: Mapping[int, str], inputs: Mapping[str, Any]) -> tuple[list[dict[str, Any]], Tensor]:
    pixels = inputs["pixel_values"]
    views = pixels.unbind(1) if pixels.dim() == 6 else [pixels]  # one forward each, so that a row is a sample
    found = torch.stack([host(**{**inputs, "pixel_values": x}).logits.float().log_softmax(-1) for x in views])
    found = found.logsumexp(0) - math.log(len(views)) if len(views) > 1 else found[0]
    best = [[names[i] for i in row] for row in found.topk(min(BEST, found.shape[-1])).indices.tolist()]
    return [{"prediction": row[0], "best": row} for row in best], found


class Classify(Looking):
    """A class for each picture or clip."""

    name, does = "classify", DOES["classify"]
    weighs, asks = "likeliest classes", "Which class is it?"
    evaluate = Classifying

    def check(self, loaded: Loaded, samples: Sequence[Sample]) -> None:
        """Also: the classes of model and task must be the same."""
        super().check(loaded, samples)
        names_of(loaded.host.labels, self.task)

    def answer(self, loaded: Loaded, inputs: Mapping[str, Tensor]) -> tuple[list[dict[str, Any]], Tensor]:
        """As `Classifying.say`."""
        return _named(loaded.host, names_of(loaded.host.labels, self.task), inputs)

    def likely(self, loaded: Loaded, first: Tensor, most: int) -> list[tuple[str, float]]:
        """Classes."""
        names, top = names_of(loaded.host.labels, self.task), first.exp().topk(min(most, len(first)))
        return [(names[i], p) for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)]

    def scores(self, samples: Sequence[Sample], rows: Mapping[str, Row]) -> list[float]:
        """1 where the likeliest class is right, else 0."""
        return [float(rows[s.id]["prediction"] == s.reference) for s in samples]

    def summary(self, samples: Sequence[Sample], rows: Mapping[str, Row]) -> dict[str, float]:
        """top1 and top5: the right class is the likeliest, or among the five likeliest; of more than five classes."""
        top1 = mean(self.scores(samples, rows))
        if len(self.task.classes) <= BEST:  # type: ignore[attr-defined]
            return {"top1": top1}
        return {"top1": top1, "top5": mean([float(s.reference in rows[s.id]["best"]) for s in samples])}
