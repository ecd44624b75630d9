"""Exact match behind a light normalisation, with any of the references."""

from btp.tasks import metric
from btp.tasks.sample import Sample
from btp.tasks.scoring import exact_match, plain_answer


class Metric(metric.Metric):
    """1 where the answer is one of the references, but for case, blanks, a full stop and markup."""

    name = "exact_match"

    def score(self, sample: Sample, prediction: str) -> float:
        """0 or 1."""
        said = plain_answer(prediction)
        return max(exact_match(said, plain_answer(answer)) for answer in sample.answers)
