"""Base of tasks with questions about long texts from local files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256

from btp.tasks.files.entries import Entry
from btp.tasks.files.local import Place
from btp.tasks.metric import mean
from btp.tasks.sample import Sample
from btp.tasks.shown import brief
from btp.tasks.vqa import named, shuffled


def listed(given: str | Sequence[str] | None) -> list[str]:
    """Names that a config gives as a list, or as one; none of null."""
    return [given] if isinstance(given, str) else list(given or ())


def questions(place: Place, file: str, name: str, key: str) -> list[Entry]:
    """The objects of a file, of which a benchmark has some.

    Args:
        name: what the file is of, as `key` lists it.

    Raises:
        ValueError: it is missing, broken or empty.
    """
    found = place.entries(file)
    if not found:
        raise ValueError(f"{place.root / file} holds no question. Get it anew, or leave {name} out of {key}.")
    return found


def at_least(least: int, value: object, key: str) -> None:
    """Refuse what is no whole number, or too small.

    Raises:
        ValueError: names the key.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{key} is {brief(value)}. Write a whole number, {least} or more.")


class Texts:
    """Samples that are all in memory, in an order drawn by seed.

    Args:
        name: Name of the task.
        samples: Samples in the order of their files.
        shuffle_seed: order in which samples are asked, so that limit draws from all of them; None keeps that of the
            files.

    Attributes:
        max_new_tokens: Tokens of the longest answer; a sample may have its own.

    Raises:
        ValueError: there is no sample, or ids repeat.
    """

    max_new_tokens: int

    def __init__(self, name: str, samples: Sequence[Sample], shuffle_seed: int | None):
        if not samples:
            raise ValueError("task.path holds no question. Name a file or a folder that holds some.")
        found = named(samples)
        self.name = name
        self._samples = found if shuffle_seed is None else shuffled(found, shuffle_seed)
        self.max_new_tokens = max(sample.max_new_tokens or 1 for sample in self._samples)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]

    def score(self, sample: Sample, prediction: str) -> float:
        """In [0, 1]."""
        raise NotImplementedError

    def scores(self, samples: Sequence[Sample], predictions: Sequence[str]) -> list[float]:
        """Score of each answer."""
        return [self.score(s, p) for s, p in zip(samples, predictions, strict=True)]

    def summary(self, samples: Sequence[Sample], predictions: Sequence[str]) -> dict[str, float]:
        """Mean score in percent, each ability counted the same."""
        return {"average": 100 * mean(list(self._by_ability(samples, predictions).values()))}

    def chance(self, samples: Sequence[Sample]) -> dict[str, float]:
        """0: no answer is right by chance."""
        return dict.fromkeys((sample.ability for sample in samples), 0.0)

    def content(self) -> dict[str, object]:
        """A digest of all questions and answers."""
        found = sha256()
        for s in sorted(self._samples, key=lambda s: s.id):
            found.update(json.dumps([s.id, s.question, s.answers, s.ability, s.choices, s.context]).encode())
        return {"digest": found.hexdigest()[:16]}

    def _by_ability(self, samples: Sequence[Sample], predictions: Sequence[str]) -> dict[str, float]:
        found: dict[str, list[float]] = {}
        for sample, score in zip(samples, self.scores(samples, predictions), strict=True):
            found.setdefault(sample.ability, []).append(score)
        return {ability: mean(scores) for ability, scores in found.items()}
