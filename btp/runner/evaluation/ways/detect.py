"""Objects in boxes; compared by the boxes that two answers share, and by the detection tokens' distributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from btp.models.loading.load import Loaded
from btp.runner.evaluation.data import Batch
from btp.runner.evaluation.ways.evaluation_loop import Evaluate
from btp.runner.evaluation.ways.label_names import categories_of
from btp.runner.evaluation.ways.single_forward import Looking
from btp.runner.evaluation.ways.way import DOES, Row
from btp.tasks.detection.average_precision import average_precision
from btp.tasks.detection.matching import Found, agreement, matched, sure
from btp.tasks.sample import Sample

DIGITS = 5  # of scores and of sides, which are shares of the picture's


class Detecting(Evaluate):
    """Finds objects: as many as the model has detection tokens, each with its likeliest name."""

    def __init__(self, loaded: Loaded, pruner: Any, trace: Any, task: Any, *more: Any):
        super().__init__(loaded, pruner, trace, task, *more)
        self.names, self.threshold = categories_of(loaded.host.labels, task), task.threshold

    def say(self, inputs: Mapping[str, Any], batch: Batch) -> tuple[list[dict[str, Any]], Tensor]:
        """Boxes (name, score, x0, y0, x1, y1), best first, and [B, Q, C + 1] log-probabilities of detection tokens."""
        return _found(self.host, self.names, self.threshold, inputs)


def _found(
    host: Any, names: Mapping[int, str], threshold: float, inputs: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], Tensor]:
    out = host(**inputs)
    logits = out.logits.float().log_softmax(-1)
    known = sorted(names)
    scores, best = logits[..., known].exp().max(-1)
    centre, size = out.pred_boxes.float().split(2, -1)
    corners = (centre - size / 2, centre + size / 2)
    rows = []
    for score, name, low, high in zip(*(t.tolist() for t in (scores, best, *corners)), strict=True):
        found = [
            [names[known[n]], round(s, DIGITS), *(round(v, DIGITS) for v in (*a, *b))]
            for s, n, a, b in zip(score, name, low, high, strict=True)
        ]
        found.sort(key=lambda box: -box[1])
        said = ", ".join(f"{box[0]} {box[1]:.2f}" for box in sure(found, threshold))
        rows.append({"prediction": said or "nothing", "boxes": found})
    return rows, logits


class Detect(Looking):
    """Objects of each picture."""

    name, does = "detect", DOES["detect"]
    weighs, asks = "likeliest objects", "What is where?"
    evaluate = Detecting

    def check(self, loaded: Loaded, samples: Sequence[Sample]) -> None:
        """Also: the model must know the task's objects."""
        super().check(loaded, samples)
        categories_of(loaded.host.labels, self.task)

    def answer(self, loaded: Loaded, inputs: Mapping[str, Tensor]) -> tuple[list[dict[str, Any]], Tensor]:
        """As `Detecting.say`."""
        names, threshold = categories_of(loaded.host.labels, self.task), self.task.threshold  # type: ignore[attr-defined]
        return _found(loaded.host, names, threshold, inputs)

    def likely(self, loaded: Loaded, first: Tensor, most: int) -> list[tuple[str, float]]:
        """Objects, of whichever detection token."""
        names = categories_of(loaded.host.labels, self.task)
        known = sorted(names)
        every = first.exp()[:, known].flatten()
        top = every.topk(min(most, len(every)))
        return [
            (names[known[i % len(known)]], p) for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]

    def scores(self, samples: Sequence[Sample], rows: Mapping[str, Row]) -> list[float]:
        """F1 of the boxes that the model is sure of: matched with the labelled ones at an IoU of a half."""
        return [agreement(self._sure(rows[s.id]), truth_of(s)) for s in samples]

    def summary(self, samples: Sequence[Sample], rows: Mapping[str, Row]) -> dict[str, float]:
        """COCO's average precision of all boxes, by size of the object too."""
        return average_precision(self.task.truth(samples), [rows[s.id]["boxes"] for s in samples])  # type: ignore[attr-defined]

    def agrees(self, answer: Row, unpruned: Row) -> float:
        """F1 of the boxes that either is sure of: those with the same name and an IoU of a half are the same."""
        return agreement(self._sure(answer), self._sure(unpruned))

    def marks(self, samples: Sequence[Sample], rows: Mapping[str, Row]) -> list[dict[str, Any]]:
        """Boxes that the model is sure of, matched or wrong, and the objects that it missed."""
        found = []
        for sample in samples:
            mine, truth = self._sure(rows[sample.id]), truth_of(sample)
            pairs = matched(mine, truth)
            hits, seen = {i for i, _ in pairs}, {j for _, j in pairs}
            listed = [("matched" if i in hits else "wrong", box) for i, box in enumerate(mine)]
            listed += [("missed", box) for j, box in enumerate(truth) if j not in seen]
            for kind, box in listed:
                corners = dict(zip(("x0", "y0", "x1", "y1"), map(float, box[2:]), strict=True))
                found.append({"sample": sample.id, "label": str(box[0]), "kind": kind, **corners})
        return found

    def _sure(self, row: Row) -> list[Found]:
        return sure(row["boxes"], self.task.threshold)  # type: ignore[attr-defined]


def truth_of(sample: Sample) -> list[Found]:
    """The labelled boxes of a sample."""
    return [[name, 1.0, *box] for name, box in zip(sample.labels, sample.boxes, strict=True)]
