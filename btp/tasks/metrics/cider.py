"""CIDEr-D of captions, by the scorer of the COCO caption evaluation."""

import re
from collections.abc import Sequence

from btp.tasks import metric
from btp.tasks.metric import mean
from btp.tasks.sample import Sample

HIGHEST = 10.0


class Metric(metric.Metric):
    """Agreement of n-grams with the references, rare ones counted more; a sample's score is its CIDEr-D / 10.

    What is rare is decided by the references of the samples that are scored together. Captions are split into words
    by case and punctuation here, while the COCO server uses a tokeniser that needs Java; the last digits may differ.

    Source: Vedantam et al. 2015, arXiv:1411.5726.

    Raises:
        ValueError: pycocoevalcap is not installed.
    """

    name = "cider"

    def __init__(self, samples: Sequence[Sample]):
        super().__init__(samples)
        try:
            from pycocoevalcap.cider.cider_scorer import CiderScorer
        except ImportError:
            raise ValueError(
                "task.dataset.metric is 'cider', which needs pycocoevalcap. Install it: pip install -r "
                "requirements-captions.txt, or set task.dataset.metric."
            ) from None
        self._scorer = CiderScorer

    def score(self, sample: Sample, prediction: str) -> float:
        """In [0, 1], among the references of all samples of the task."""
        at = next(i for i, other in enumerate(self.samples) if other.id == sample.id)
        predictions = [prediction if i == at else "" for i in range(len(self.samples))]
        return self.scores(self.samples, predictions)[at]

    def scores(self, samples: Sequence[Sample], predictions: Sequence[str]) -> list[float]:
        """In [0, 1], among the references of these samples; all 0 where there is only one."""
        scorer = self._scorer()
        for sample, prediction in zip(samples, predictions, strict=True):
            scorer += (words(prediction), [words(answer) for answer in sample.answers])
        _, found = scorer.compute_score()
        return [min(1.0, max(0.0, float(value) / HIGHEST)) for value in found]

    def summary(self, samples: Sequence[Sample], predictions: Sequence[str]) -> dict[str, float]:
        """`cider` on the scale on which papers print it times 100: about 1 where people agree."""
        return {self.name: HIGHEST * mean(self.scores(samples, predictions))}


def words(caption: str) -> str:
    """Lower-case words with one blank between them, punctuation dropped."""
    return " ".join(re.findall(r"\w+(?:['-]\w+)*", caption.lower()))
