"""Yes-or-no questions: accuracy, precision, recall and F1 of "yes", and how often it is said (POPE)."""

import re
from collections.abc import Sequence

from sklearn.metrics import precision_recall_fscore_support

from btp.tasks import metric
from btp.tasks.metric import mean
from btp.tasks.sample import Sample
from btp.tasks.scoring import bare
from btp.tasks.shown import short

_SAID = re.compile(r"\b(?:answer|response)\s*(?:(?:is|would be|must be)\b\s*:?|:)\s*\W?(yes|no)\b")
_REPLY = re.compile(r"(?:so|thus|hence|therefore|and)?\W*(yes|no)(?:\W*$|\s*,)")
_NEGATION = re.compile(r"\b(?:no|not|cannot|none|neither)\b|n['’]t\b")


def said(prediction: str) -> str | None:
    """What an answer comes to behind its markup: "yes", "no", or None where it says neither.

    `y`, `n` and `the answer is no` are taken at their word. Otherwise the first sentence decides: by its first word
    where that is yes or no, else by a negation (no, not, none, n't) anywhere in it, else by a yes, else by `there is`.
    A later sentence counts where it is a reply by itself (`Yes, it is.`). The script of POPE takes every answer
    without a no for a yes; here one that says neither is wrong, and `unclear` counts it.
    """
    text = bare(prediction).lower()
    if text.strip(" .!") in ("y", "n"):
        return {"y": "yes", "n": "no"}[text.strip(" .!")]
    if found := _SAID.findall(text):
        return found[-1]
    sentences = [part for part in re.split(r"[.!?;\n]", text) if re.search(r"[a-z]{2}", part)]
    first = sentences[0].strip() if sentences else ""
    if opening := re.match(r"\W*(yes|no)\b", first):
        return opening[1]
    if _NEGATION.search(first):
        return "no"
    if re.search(r"\byes\b", first):
        return "yes"
    replies = [reply[1] for part in sentences[1:] if (reply := _REPLY.match(part.strip()))]
    if replies:
        return replies[0]
    return "yes" if re.match(r"there\s*(?:is|are|'s)\b", first) else None


class Metric(metric.Metric):
    """1 where the answer says what the reference says."""

    name = "accuracy"

    def check(self, sample: Sample) -> None:
        """References are yes or no."""
        if sample.reference.strip().lower() not in ("yes", "no"):
            raise ValueError(
                f"sample {sample.id}: its answer is {short(repr(sample.reference))}, but metric yes_no or mme needs "
                "yes or no. Correct it, or set task.dataset.metric."
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
