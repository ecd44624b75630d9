"""A needle in a haystack (Kamradt 2023): one sentence somewhere in a long text, and a question about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np

from btp.tasks.files.local import Place, read_text
from btp.tasks.sample import Sample
from btp.tasks.shown import brief
from btp.tasks.texts.task import Texts, at_least
from btp.tasks.texts.text_scores import contained

NEEDLE, QUESTION = "The code of the archive in {key} is {value}.", "What is the code of the archive in {key}?"
KEYS = ("Oslo", "Lima", "Quito", "Hanoi", "Cairo", "Turin", "Osaka", "Perth", "Dakar", "Minsk")
LEAD = "Read the text. A question about it follows.\n\n"
_LONGEST = 100  # words of a sentence; lengths are met by whole ones
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


class Niah(Texts):
    """Texts of a folder, cut to each length, with a needle at each depth.

    Args:
        path: a folder of .txt files, or one file.
        lengths: words of the text; a word is about 1.3 tokens.
        depths: percent of the text in front of the needle.
        repeats: samples of each length and depth, each with a needle and a part of the text of its own.
        seed: Seed of what is drawn.
        needle, question: Texts with {key} and {value}, of which the question has {key} alone.
        max_new_tokens: Tokens of an answer.

    Raises:
        ValueError: there is no text, or too little of it; a needle without its marks; a length or depth that is none.
    """

    def __init__(
        self,
        path: str,
        lengths: Sequence[int],
        depths: Sequence[float],
        repeats: int = 1,
        seed: int = 0,
        needle: str = NEEDLE,
        question: str = QUESTION,
        max_new_tokens: int = 32,
        shuffle_seed: int | None = 0,
        name: str = "niah",
    ):
        if _marks(needle) != {"key", "value"} or _marks(question) != {"key"}:
            raise ValueError(
                "task.dataset.needle needs {key} and {value}, and task.dataset.question {key}, for what is drawn, and "
                f"no other braces. They are {needle!r} and {question!r}. Correct them."
            )
        if not _numbers(depths, lambda depth: 0 <= depth <= 100):
            raise ValueError(f"task.dataset.depths is {brief(depths)}. Write percents from 0 to 100, as [0,50,100].")
        if not _numbers(lengths, lambda length: length >= 1 and length == int(length)):
            raise ValueError(f"task.dataset.lengths is {brief(lengths)}. Write numbers of words, as [750,1500].")
        at_least(1, repeats, "task.dataset.repeats")
        self._needle, self._question, self._longest_answer = needle, question, max_new_tokens
        sentences = _sentences(Path(path))
        counts = np.cumsum([len(sentence.split()) for sentence in sentences])
        if counts[-1] < max(lengths):
            raise ValueError(
                f"task.path is {path}, whose text has {counts[-1]:,} words, but task.dataset.lengths asks for "
                f"{max(lengths):,}. Add more text, or lower it."
            )
        samples = [
            self._sample(sentences, counts, length, depth, repeat, np.random.default_rng([seed, i, j, repeat]))
            for i, length in enumerate(lengths)
            for j, depth in enumerate(depths)
            for repeat in range(repeats)
        ]
        super().__init__(name, samples, shuffle_seed)

    def _sample(
        self,
        sentences: Sequence[str],
        counts: np.ndarray,
        length: int,
        depth: float,
        repeat: int,
        rng: np.random.Generator,
    ) -> Sample:
        spare = counts[-1] - length
        first = int(rng.integers(np.searchsorted(counts, spare, side="right") + 1))
        last = int(np.searchsorted(counts, (counts[first - 1] if first else 0) + length))
        part = list(sentences[first : last + 1])
        key, value = KEYS[int(rng.integers(len(KEYS)))], str(rng.integers(10**6, 10**7))
        needle = self._needle.format(key=key, value=value)
        at = round(len(part) * depth / 100)
        text = " ".join([*part[:at], needle, *part[at:]])
        begins = len(LEAD) + len(" ".join([*part[:at], ""]))
        asked = self._question.format(key=key)
        return Sample(
            id=f"{length}-{depth:g}-{repeat}",
            images=(),
            question=f"{LEAD}{text}\n\n{asked}",
            reference=value,
            ability=f"{length} words, {depth:g}%",
            spans=((begins, begins + len(needle)),),
            context=((len(LEAD), len(LEAD) + len(text)),),
            max_new_tokens=self._longest_answer,
        )

    def score(self, sample: Sample, prediction: str) -> float:
        """1 where the answer holds the value."""
        return contained(prediction, [sample.reference])


def _marks(text: str) -> set[str | None]:
    """Names in braces; None where braces are no marks."""
    try:
        return {name for _, name, _, _ in Formatter().parse(text) if name is not None}
    except ValueError:
        return {None}


def _numbers(given: Any, fits: Callable[[float], bool]) -> bool:
    """Whether it is a list of numbers that fit, with one at least."""
    listed = isinstance(given, Sequence) and not isinstance(given, str) and len(given) > 0
    return listed and all(isinstance(n, int | float) and not isinstance(n, bool) and fits(n) for n in given)


def _sentences(path: Path) -> list[str]:
    """The sentences of all texts, in the order of their names; what runs on without an end is divided."""
    place = Place(path, "A haystack", "one or more .txt files", "any long text, as essays or books")
    files = [path] if path.is_file() else sorted(path.glob("*.txt")) or [place.find("haystack.txt")]
    text = " ".join(" ".join(read_text(file, "task.path").split()) for file in files)
    words = (sentence.split(" ") for sentence in _SENTENCE.split(text) if sentence)
    found = [" ".join(part[at : at + _LONGEST]) for part in words for at in range(0, len(part), _LONGEST)]
    if not found:
        raise ValueError(f"task.path is {path}, whose files hold no text. Name others.")
    return found
