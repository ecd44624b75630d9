"""Multiple choice: the letter or the option's text that an answer names."""

from collections import defaultdict
from collections.abc import Sequence
from string import ascii_uppercase

from btp.tasks import metric
from btp.tasks.choice import chosen
from btp.tasks.metric import mean
from btp.tasks.sample import Sample
from btp.tasks.shown import short


class Metric(metric.Metric):
    """1 where the answer names the right option."""

    name = "accuracy"

    def check(self, sample: Sample) -> None:
        """Between 2 and 26 options, and a letter of one of them."""
        letters = ascii_uppercase[: len(sample.choices)]
        if not 2 <= len(sample.choices) <= len(ascii_uppercase):
            raise ValueError(
                f"sample {sample.id}: metric multiple_choice needs 2 to 26 choices, but it has {len(sample.choices)}. "
                "Give it `choices`, or set task.dataset.metric."
            )
        if len(sample.reference) != 1 or sample.reference not in letters:
            raise ValueError(
                f"sample {sample.id}: its answer {short(repr(sample.reference))} is neither one of its choices nor a "
                f"letter from A to {letters[-1]}. Correct `answer`."
            )

    def score(self, sample: Sample, prediction: str) -> float:
        """0 or 1."""
        return float(chosen(prediction, sample.choices) == sample.reference)

    def summary(self, samples: Sequence[Sample], predictions: Sequence[str]) -> dict[str, float]:
        """Accuracy, and the share of answers in which no option was found.

        Where a group has several samples (MMBench asks a question once per order of its options), also `circular`: the
        share of groups that are right in all. Where videos are of several groups of lengths, the accuracy of each.
        """
        scores = self.scores(samples, predictions)
        groups: dict[str, list[float]] = defaultdict(list)
        for sample, score in zip(samples, scores, strict=True):
            groups[sample.group or sample.id].append(score)
        found = {"accuracy": mean(scores)}
        if len(groups) < len(samples):
            found["circular"] = mean([min(group) for group in groups.values()])
        unclear = [chosen(p, s.choices) is None for s, p in zip(samples, predictions, strict=True)]
        lengths = dict.fromkeys(s.duration for s in samples if s.duration)
        for length in lengths if len(lengths) > 1 else ():
            mine = [score for sample, score in zip(samples, scores, strict=True) if sample.duration == length]
            found[f"accuracy, {length}"] = mean(mine)
        return found | {"unclear": mean(unclear)}
