"""ANLS: how many letters an answer differs by, for text that is read from a document."""

from rapidfuzz.distance import Levenshtein

from btp.tasks import metric
from btp.tasks.sample import Sample
from btp.tasks.scoring import plain_answer

LEAST = 0.5


class Metric(metric.Metric):
    """1 - edit distance / length of the longer text, best of the references; 0 where that is not above one half.

    Source: Biten et al. 2019, arXiv:1905.13648, with the threshold 0.5. Case, blanks and
    markup do not count.
    """

    name = "anls"

    def score(self, sample: Sample, prediction: str) -> float:
        """0, or in (0.5, 1]."""
        best = max(Levenshtein.normalized_similarity(_plain(prediction), _plain(a)) for a in sample.answers)
        return best if best > LEAST else 0.0


def _plain(text: str) -> str:
    return " ".join(plain_answer(text).lower().split())
