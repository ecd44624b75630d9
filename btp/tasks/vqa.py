"""Questions about pictures from local files: any reader's samples, scored by any metric."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from string import ascii_uppercase

import numpy as np

from btp.tasks.files.images import Pictures
from btp.tasks.files.local import Reader, file_name, id_hash
from btp.tasks.metric import make_metric, mean
from btp.tasks.sample import Sample
from btp.tasks.scoring import normalise
from btp.tasks.shown import brief, short

GUESSES = 10  # constant answers that chance tries per ability


class VQA:
    """A task of local files. Their text is read at once, a picture whenever somebody looks at it.

    Args:
        name: Name of the task.
        reader: Reader of the files.
        metric: a file of btp/tasks/metrics.
        max_new_tokens: longest answer.
        suffix: a line behind every question, which says how to answer; None adds none.
        shuffle_seed: order in which samples are asked, so that limit draws from all of them; samples of one group stay
            together. None keeps the order of the files.
        abilities: ask only for these; None = all.

    Raises:
        ValueError: files are missing or broken, there is no sample, ids repeat, a sample lacks what the metric needs.
    """

    def __init__(
        self,
        name: str,
        reader: Reader,
        metric: str,
        max_new_tokens: int,
        suffix: str | None = None,
        shuffle_seed: int | None = None,
        abilities: Sequence[str] | None = None,
    ):
        self.name, self.max_new_tokens = name, max_new_tokens
        samples = named(reader.read())
        if not samples:
            raise ValueError("task.path holds no question. Name a file or a split that holds some.")
        for sample in samples:
            _check_kinds(sample)
        samples = _of_abilities(samples, abilities)
        for sample in samples:
            _check_text(sample)
            if not sample.reference.strip():
                raise ValueError(
                    f"sample {sample.id} has no answer, and nothing can be scored without. Give it one, or set "
                    "task.path to a split whose answers are public."
                )
        self._metric = make_metric(metric, samples)
        if shuffle_seed is not None:
            samples = shuffled(samples, shuffle_seed)
        self._samples = [_asked(sample, suffix) for sample in samples]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        sample = self._samples[index]
        for shown in (sample.images, *sample.clips):
            if isinstance(shown, Pictures):
                shown.check()
        return sample

    def score(self, sample: Sample, prediction: str) -> float:
        """As the metric says, in [0, 1]."""
        return self._metric.score(sample, prediction)

    def scores(self, samples: Sequence[Sample], predictions: Sequence[str]) -> list[float]:
        """As `score`, for answers that a metric may weigh together."""
        return self._metric.scores(samples, predictions)

    def summary(self, samples: Sequence[Sample], predictions: Sequence[str]) -> dict[str, float]:
        """The metric's own numbers, on their own scales."""
        return self._metric.summary(samples, predictions)

    def chance(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Mean score per ability of the best constant answer, among the commonest references."""
        by_ability: dict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            by_ability[sample.ability].append(sample)
        found = {}
        for ability, mine in by_ability.items():
            said = Counter(normalise(answer) for sample in mine for answer in dict.fromkeys(sample.answers))
            guesses = [text.upper() if mine[0].choices else text for text, _ in said.most_common(GUESSES)]
            found[ability] = max(mean(self.scores(mine, [guess] * len(mine))) for guess in guesses)
        return found

    def content(self) -> dict[str, object]:
        """A digest of all questions and answers, and of names, sizes and both ends of their pictures' files."""
        return {"digest": digest_of(sorted(self._samples, key=lambda s: s.id))}


def digest_of(samples: Sequence[Sample], whole: bool = False) -> str:
    """A hash of what samples hold.

    Args:
        whole: read every picture file; otherwise its name, its size and its ends stand for it.
    """
    found = sha256()
    for sample in samples:
        text = [sample.id, sample.question, sample.answers, sample.ability, sample.choices, sample.group]
        shown = [one for one in (sample.images, *sample.clips) if isinstance(one, Pictures)]
        marks = [mark for one in shown for mark in one.marks()]
        found.update(json.dumps([*text, sample.boxes, sample.labels, sample.targets, marks]).encode())
        for one in shown if whole else ():
            one.check()
            for source in one.sources:
                with source.open() as file:
                    found.update(sha256(file.read()).digest())
    return found.hexdigest()[:16]


def shuffled(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """Samples in an order drawn by seed; those of one group and ability stay neighbours."""
    units: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        unit = (sample.ability, sample.group) if sample.group else ("", f"alone {sample.id}")
        units.setdefault(unit, []).append(sample)
    listed = list(units.values())
    return [sample for i in np.random.default_rng(seed).permutation(len(listed)) for sample in listed[i]]


def named(samples: Sequence[Sample]) -> list[Sample]:
    """Samples whose ids can name files; those of ids that differ differ too.

    Raises:
        ValueError: two samples have the same.
    """
    names = Counter(file_name(own) for own in {sample.id for sample in samples})

    def name(own: str) -> str:
        plain = file_name(own)
        return plain if names[plain] == 1 or plain == own else f"{plain}-{id_hash(own)}"

    named = [replace(sample, id=name(sample.id)) for sample in samples]
    twice = [own for own, count in Counter(s.id for s in named).items() if count > 1]
    if twice:
        raise ValueError(
            f"{len(twice)} id(s) stand for several samples, for example {twice[0]}. Give every sample an id of its "
            "own, or leave ids out to have samples numbered."
        )
    return named


def _check_kinds(sample: Sample) -> None:
    """Refuse what a reader took from a file as it was, and which is no text."""
    one = {"question": sample.question, "answer": sample.reference, "ability": sample.ability, "group": sample.group}
    several = (("answers", sample.references), ("choices", sample.choices), ("labels", sample.labels))
    for name, value in (*one.items(), *((name, value) for name, values in several for value in values)):
        if not isinstance(value, str):
            raise ValueError(f"sample {sample.id}: its {name} is {brief(value)}, not a text. Correct it in its file.")


def _check_text(sample: Sample) -> None:
    """Refuse what neither a tokenizer nor a file takes."""
    texts = (sample.question, sample.ability, sample.group, *sample.answers, *sample.choices, *sample.labels)
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"sample {sample.id}: a text of it holds {error.object[error.start]!r}, which is half of a character (a "
            "lone surrogate). Correct it in the table."
        ) from None


def _of_abilities(samples: Sequence[Sample], wanted: Sequence[str] | None) -> list[Sample]:
    known = list(dict.fromkeys(s.ability for s in samples))
    unknown = [a for a in wanted or () if a not in known]
    if unknown:
        names = ", ".join(short(a, 40) for a in known)
        raise ValueError(f"task.dataset.abilities holds {unknown}. Choose from: {names}.")
    return [s for s in samples if not wanted or s.ability in wanted]


def _asked(sample: Sample, suffix: str | None) -> Sample:
    """The sample with its whole prompt: question, lettered options, how to answer."""
    options = [f"{letter}. {text}" for letter, text in zip(ascii_uppercase, sample.choices, strict=False)]
    return replace(sample, question="\n".join([sample.question, *options, *([suffix] if suffix else [])]))
