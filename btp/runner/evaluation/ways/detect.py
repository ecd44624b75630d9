"""Objects in boxes; compared by the boxes that two answers share, and by the detection tokens' distributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from btp.models.loading.load import Loaded
from btp.runner.evaluation.data import Batch
from btp.runner.evaluation.ways.ask import Evaluate
from btp.runner.evaluation.ways.looking import Looking
from btp.runner.evaluation.ways.names import categories_of
from btp.runner.evaluation.ways.way import DOES, Row
from btp.tasks.detection.average_precision import average_precision
from btp.tasks.detection.matching import Found, agreement, sure
from btp.tasks.sample import Sample

DIGITS = 5  # of scores and of sides, which are shares of the picture's


class Detecting(Evaluate):
    """Finds objects: as many as the model has detection tokens, each with its likeliest name."""

    def __init__(self, loaded: Loaded, pruner: Any, trace: Any, task: Any, *more: Any):
        super().__init__(loaded, pruner, trace, task, *more)
        self.names, self.threshold = categories_of(loaded.host.labels, task), task.threshold

    def say(self, inputs: Mapping[str, Any], batch: Batch) -> tuple[list[dict[str, Any]], Tensor]:
        """Boxes (name, score, x0, y0, x1, y1), best first, and [B, Q, C + 1] log-probabilities of detection tokens."""
        out = self.host(**inputs)
        logits = out.logits.float().log_softmax(-1)
        known = sorted(self.names)
        scores, best = logits[..., known].exp().max(-1)
        centre, size = out.pred_boxes.float().split(2, -1)
        corners = (centre - size / 2, centre + size / 2)
        rows = []
        for score, name, low, high in zip(*(t.tolist() for t in (scores, best, *corners)), strict=True):
            found = [
                [self.names[known[n]], round(s, DIGITS), *(round(v, DIGITS) for v in (*a, *b))]
                for s, n, a, b in zip(score, name, low, high, strict=True)
            ]
            found.sort(key=lambda box: -box[1])
            said = ", ".join(f"{box[0]} {box[1]:.2f}" for box in sure(found, self.threshold))
            rows.append({"prediction": said or "nothing", "boxes": found})
        return rows, logits


class Detect(Looking):
    """Objects of each picture."""

    name, does = "detect", DOES["detect"]
    evaluate = Detecting

    def check(self, loaded: Loaded, samples: Sequence[Sample]) -> None:
        """Also: the model must know the task's objects."""
        super().check(loaded, samples)
        categories_of(loaded.host.labels, self.task)

    def scores(self, samples: Sequence[Sample], rows: Mapping[str, Row]) -> list[float]:
        """F1 of the boxes that the model is sure of: matched with the labelled ones at an IoU of a half."""
        return [agreement(self._sure(rows[s.id]), truth_of(s)) for s in samples]

    def summary(self, samples: Sequence[Sample], rows: Mapping[str, Row]) -> dict[str, float]:
        """COCO's average precision of all boxes, by size of the object too."""
        return average_precision(self.task.truth(samples), [rows[s.id]["boxes"] for s in samples])  # type: ignore[attr-defined]

    def agrees(self, answer: Row, unpruned: Row) -> float:
        """F1 of the boxes that either is sure of: those with the same name and an IoU of a half are the same."""
        return agreement(self._sure(answer), self._sure(unpruned))

    def _sure(self, row: Row) -> list[Found]:
        return sure(row["boxes"], self.task.threshold)  # type: ignore[attr-defined]


def truth_of(sample: Sample) -> list[Found]:
    """The labelled boxes of a sample."""
    return [[name, 1.0, *box] for name, box in zip(sample.labels, sample.boxes, strict=True)]
