"""MME: yes-or-no questions in pairs about one picture; a pair counts where both are right."""

from collections import defaultdict
from collections.abc import Sequence

from btp.tasks.metric import mean
from btp.tasks.metrics import yes_no
from btp.tasks.sample import Sample

PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity"),
    *("scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


class Metric(yes_no.Metric):
    """Score of a sample: 0 or 1, as in yes_no.

    Source: Fu et al. 2023, arXiv:2306.13394, section 2.2.
    """

    def check(self, sample: Sample) -> None:
        """Yes or no, and a group that both questions about a picture have in common."""
        super().check(sample)
        if not sample.group:
            raise ValueError(
                f"sample {sample.id}: metric mme scores the questions about one picture together, but it names no "
                "group. Give both questions the same `group`, or set task.dataset.metric=yes_no."
            )

    def summary(self, samples: Sequence[Sample], predictions: Sequence[str]) -> dict[str, float]:
        """Accuracy and acc+ in [0, 1], and scores in points: 100 (accuracy + acc+) summed over the categories.

        acc+ is over the pictures of which both questions were asked; limit may cut off one.

        Returns:
            accuracy, acc_plus, score (all categories), and where any of their categories was asked perception and
            cognition.
        """
        scores = self.scores(samples, predictions)
        by_category: dict[str, list[int]] = defaultdict(list)
        for i, sample in enumerate(samples):
            by_category[sample.ability].append(i)
        points = {
            c: 100 * (mean([scores[i] for i in at]) + _plus(samples, scores, at)) for c, at in by_category.items()
        }
        found = {
            "accuracy": mean(scores),
            "acc_plus": _plus(samples, scores, range(len(samples))),
            "score": sum(points.values()),
        }
        for name, members in (("perception", PERCEPTION), ("cognition", COGNITION)):
            if any(c in points for c in members):
                found[name] = sum(points.get(c, 0.0) for c in members)
        return found


def _plus(samples: Sequence[Sample], scores: Sequence[float], at: Sequence[int]) -> float:
    pairs: dict[tuple[str, str], list[float]] = defaultdict(list)
    for i in at:
        pairs[samples[i].ability, samples[i].group].append(scores[i])
    return mean([float(min(pair) == 1) for pair in pairs.values() if len(pair) > 1])
