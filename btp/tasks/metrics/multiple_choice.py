"""Multiple choice: finds the letter or the option's text in the answer."""

import re
from collections import defaultdict
from collections.abc import Sequence
from string import ascii_uppercase

from btp.tasks import metric
from btp.tasks.metric import mean
from btp.tasks.sample import Sample
from btp.tasks.scoring import normalise


def chosen(prediction: str, choices: Sequence[str]) -> str | None:
    """The letter of the option that an answer names, None where it names none or several.

    In this order: a letter that opens the answer and is no word of it (`B`, `(b)`, `B. a dog`, `B: a dog`), a letter
    behind `answer is` or `answer:`, one letter in brackets, an option's text that is the answer, the longest option
    whose text stands in the answer.
    """
    letters = ascii_uppercase[: len(choices)]
    text = prediction.strip()
    bracketed = set(re.findall(rf"\(([{letters}])\)", text))
    if len(bracketed) > 1:
        return None
    for pattern in (
        rf"\(?([{letters}{letters.lower()}])\)?[.:,)]?$",
        rf"\(?([{letters}])(?:\)|[.:,](?!\w))",
        rf".*\b(?i:answer(?:\s+is)?\s*:?)\s+\(?([{letters}])(?![\w'])",
    ):
        if found := re.match(pattern, text, re.DOTALL):
            return found[1].upper()
    if bracketed:
        return bracketed.pop()
    plain = [normalise(choice) for choice in choices]
    if plain.count(normalise(text)) == 1:
        return letters[plain.index(normalise(text))]
    inside = [c for c in plain if c and re.search(rf"(?<!\w){re.escape(c)}(?!\w)", normalise(text))]
    longest = [c for c in inside if not any(c != other and c in other for other in inside)]
    return letters[plain.index(longest[0])] if len(longest) == 1 and plain.count(longest[0]) == 1 else None


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
                f"sample {sample.id}: its answer {sample.reference!r} is neither one of its choices nor a letter from "
                f"A to {letters[-1]}. Correct `answer`."
            )

    def score(self, sample: Sample, prediction: str) -> float:
        """0 or 1."""
        return float(chosen(prediction, sample.choices) == sample.reference)

    def summary(self, samples: Sequence[Sample], predictions: Sequence[str]) -> dict[str, float]:
        """Accuracy, and the share of answers in which no option was found.

        Where a group has several samples (MMBench asks a question once per order of its options), also `circular`: the
        share of groups that are right in all.
        """
        scores = self.scores(samples, predictions)
        groups: dict[str, list[float]] = defaultdict(list)
        for sample, score in zip(samples, scores, strict=True):
            groups[sample.group or sample.id].append(score)
        found = {"accuracy": mean(scores)}
        if len(groups) < len(samples):
            found["circular"] = mean([min(group) for group in groups.values()])
        unclear = [chosen(p, s.choices) is None for s, p in zip(samples, predictions, strict=True)]
        return found | {"unclear": mean(unclear)}
