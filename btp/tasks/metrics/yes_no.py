"""Yes-or-no questions: accuracy, precision, recall and F1 of "yes", and how often it is said (POPE)."""

import re
from collections.abc import Sequence

from sklearn.metrics import precision_recall_fscore_support

from btp.tasks import metric
from btp.tasks.metric import mean
from btp.tasks.sample import Sample


def said(prediction: str) -> str | None:
    """What the first sentence of an answer comes to: "yes", "no", or None where it says neither.

    Its first word decides where it is yes or no; else `no` or `not` anywhere in it, else `yes`. The script of POPE
    takes every answer without a no for a yes; here such an answer is wrong, and `unclear` counts it.
    """
    words = re.findall(r"[a-z']+", prediction.strip().lower().split(".")[0])
    if words and words[0] in ("yes", "no"):
        return words[0]
    if {"no", "not"} & set(words):
        return "no"
    return "yes" if "yes" in words else None


class Metric(metric.Metric):
    """1 where the answer says what the reference says."""

    name = "accuracy"

    def check(self, sample: Sample) -> None:
        """References are yes or no."""
        if sample.reference.strip().lower() not in ("yes", "no"):
            raise ValueError(
                f"sample {sample.id}: its answer is {sample.reference!r}, but metric yes_no or mme needs yes or no. "
                "Correct it, or set task.dataset.metric."
            )

    def score(self, sample: Sample, prediction: str) -> float:
        """0 or 1."""
        return float(said(prediction) == sample.reference.strip().lower())

    def summary(self, samples: Sequence[Sample], predictions: Sequence[str]) -> dict[str, float]:
        """Shares in [0, 1]: accuracy, precision, recall, f1, yes (answers that say it), unclear (say neither)."""
        answers = [said(p) for p in predictions]
        true = [s.reference.strip().lower() == "yes" for s in samples]
        positive = [a == "yes" for a in answers]
        precision, recall, f1, _ = precision_recall_fscore_support(true, positive, average="binary", zero_division=0)
        return super().summary(samples, predictions) | {
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "yes": mean(positive),
            "unclear": mean([a is None for a in answers]),
        }
