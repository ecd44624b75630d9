"""Scores of answers to questions about long texts, each as its benchmark defines it; all in [0, 1]."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from rapidfuzz import fuzz
from rapidfuzz.distance import LCSseq

from btp.tasks.sample import Sample

_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_NUMBER = re.compile(r"\d+")
_NO_CODE = ("`", "#", "//")  # marks of a line that is no code


def qa_f1(prediction: str, reference: str) -> float:
    """F1 of the words of both, without case, punctuation and articles (Rajpurkar et al. 2016, arXiv:1606.05250)."""
    said, true = (Counter(_words(text)) for text in (prediction, reference))
    shared = (said & true).total()
    return 2 * shared / (said.total() + true.total()) if shared else 0.0


def rouge_l(prediction: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004): sentence level, lower case, no stemming."""
    said, true = (re.findall(r"\w+", text.lower()) for text in (prediction, reference))
    shared = LCSseq.similarity(said, true)
    return 2 * shared / (len(said) + len(true)) if shared else 0.0


def classification(prediction: str, reference: str, classes: Sequence[str]) -> float:
    """One part of as many as there are classes named in the answer, where the right one is among them. A class whose
    name is part of the right one's does not count.
    """
    named = [name for name in classes if name in prediction and (name == reference or name not in reference)]
    return 1 / len(named) if reference in named else 0.0


def numbers(prediction: str, reference: str) -> float:
    """Share of the numbers in the answer that are the right one, the last number of the reference."""
    wanted, said = _NUMBER.findall(reference), _NUMBER.findall(prediction)
    return said.count(wanted[-1]) / len(said) if wanted and said else 0.0


def code_similarity(prediction: str, reference: str) -> float:
    """Edit similarity of the first line of code."""
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in _NO_CODE)), "")
    return fuzz.ratio(line, reference) / 100


def contained(prediction: str, references: Sequence[str]) -> float:
    """Share of the references that stand in the answer, whatever the case."""
    return sum(reference.lower() in prediction.lower() for reference in references) / len(references)


def best(measure: Callable[[str, str], float], sample: Sample, prediction: str) -> float:
    """The best score against any of a sample's references."""
    return max(measure(prediction, reference) for reference in sample.answers)


def _words(text: str) -> list[str]:
    plain = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return _ARTICLE.sub(" ", plain).split()
