"""Exact match behind a light normalisation, with any of the references."""

from btp.tasks.metrics import base as metric
from btp.tasks.metrics.text import exact_match, plain_answer
from btp.tasks.sample import Sample


class Metric(metric.Metric):
    """1 where the answer is one of the references, but for case, blanks, a full stop and markup."""

    name = "exact_match"

    def score(self, sample: Sample, prediction: str) -> float:
        """0 or 1."""
        said = plain_answer(prediction)
        return max(exact_match(said, plain_answer(answer)) for answer in sample.answers)
