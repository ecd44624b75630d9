"""Relaxed accuracy: a number may be off by 5%, a word may not (ChartQA)."""

import re

from btp.tasks import metric
from btp.tasks.sample import Sample
from btp.tasks.scoring import normalise, plain_answer

TOLERANCE = 0.05
THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(?![\d,])")


class Metric(metric.Metric):
    """1 where the answer's number is within 5% of the reference's, or where both say the same.

    Source: Masry et al. 2022, arXiv:2203.10244, section 5. `12%` counts as 0.12, `$1,200` as 1200, a
    reference of 0 has no tolerance.
    """

    name = "relaxed_accuracy"

    def score(self, sample: Sample, prediction: str) -> float:
        """0 or 1."""
        return max(_near(prediction, answer) for answer in sample.answers)


def _near(prediction: str, answer: str) -> float:
    prediction, answer = plain_answer(prediction), plain_answer(answer)
    said, true = _number(prediction), _number(answer)
    if said is not None and true:
        return float(abs(said - true) <= TOLERANCE * abs(true))
    return float(normalise(prediction) == normalise(answer))


def _number(text: str) -> float | None:
    text = text.strip().rstrip(".").lstrip("$€£")
    text = text.replace(",", "") if THOUSANDS.match(text) else text
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
