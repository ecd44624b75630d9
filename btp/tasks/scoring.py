"""Text metrics that several tasks share."""

import re
from collections import Counter


def normalise(text: str) -> str:
    """Lower case, single blanks, no blank between digits, no full stop at the end."""
    text = re.sub(r"\s+", " ", text.strip().lower()).rstrip(" .")
    return re.sub(r"(?<=\d) (?=\d)", "", text)


def exact_match(prediction: str, reference: str) -> float:
    """1.0 where both say the same behind `normalise`, else 0.0."""
    return float(normalise(prediction) == normalise(reference))


def list_f1(prediction: str, reference: str) -> float:
    """F1 of the comma-separated items of two lists, each item counted as often as it is named."""
    said, true = (Counter(part.strip() for part in normalise(t).split(",")) for t in (prediction, reference))
    shared = (said & true).total()
    return 2 * shared / (said.total() + true.total())
