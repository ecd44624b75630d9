"""Naming the class of a picture or clip, from local files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from btp.tasks.files.images import Pictures
from btp.tasks.files.local import file_name, lines_of, read_json, read_text
from btp.tasks.sample import Sample
from btp.tasks.shown import brief, short
from btp.tasks.vqa import digest_of, named, shuffled


@dataclass(frozen=True)
class Named:
    """A picture or clip, and its class.

    Attributes:
        name: what messages and ids call it.
        pictures: the picture, or the frames of the clip, opened when they are looked at.
        label: name of its class.
        where: the file and place that say so, for messages.
    """

    name: str
    pictures: Pictures
    label: str
    where: str


class ClassReader(Protocol):
    """Reads one layout of pictures or clips with classes."""

    def read(self) -> list[Named]:
        """All of them, none opened.

        Raises:
            ValueError: a file is missing or broken.
        """
        ...

    @property
    def classes(self) -> Sequence[str]:
        """All classes that the files speak of, in the order of a model's outputs, once they are read."""
        ...


class Classes:
    """Pictures or clips with a class each.

    Attributes:
        views: of each sample, its pictures being those of one view behind those of the other.

    Args:
        name: Name of the task.
        reader: Reader of the files.
        classes: names of all classes in the order of the model's outputs: a list, a text file with one a line, or a
            JSON file with a list or {name: number}. None takes those that the files speak of.
        shuffle_seed: order in which samples are asked, so that limit draws from all classes; None keeps the files'.

    Raises:
        ValueError: files are missing or broken, there is no sample, or one is of no known class.
    """

    way = "classify"

    def __init__(
        self,
        name: str,
        reader: ClassReader,
        classes: Sequence[str] | str | None = None,
        shuffle_seed: int | None = None,
    ):
        self.name, self.views = name, getattr(getattr(reader, "looked", None), "count", 1)
        found = reader.read()
        if not found:
            raise ValueError("task.path holds no picture or clip. Name files that list some.")
        self.classes = tuple(reader.classes) if classes is None else class_names(classes)
        known = set(self.classes)
        for one in found:
            if one.label not in known:
                raise ValueError(
                    f"{one.where}: the class is {brief(one.label)}, which is none of the {len(known)} of "
                    f"task.dataset.classes ({short(', '.join(self.classes), 80)}). Correct one of the two."
                )
        samples = named([_sample(one) for one in found])
        self._samples = samples if shuffle_seed is None else shuffled(samples, shuffle_seed)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        sample = self._samples[index]
        sample.images.check()  # type: ignore[attr-defined]
        return sample

    def chance(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Share of the commonest class."""
        commonest = Counter(s.reference for s in samples).most_common(1)[0][1] / len(samples)
        return {sample.ability: commonest for sample in samples}

    def content(self) -> dict[str, object]:
        """A digest of all classes, and of names, sizes and both ends of the files."""
        return {"digest": digest_of(sorted(self._samples, key=lambda s: s.id))}


def class_names(asked: Sequence[str] | str) -> tuple[str, ...]:
    """Names of classes, from a list or from a file.

    Raises:
        ValueError: there is no such file, it lists something else, or a name comes twice.
    """
    listed: Any = asked
    if isinstance(asked, str):
        file = Path(asked)
        if not file.is_file():
            raise ValueError(
                f"task.dataset.classes is {asked}, but there is no such file. Name one, or list the names."
            )
        if file.suffix.lower() == ".json":
            listed = in_order(read_json(file, "task.dataset.classes"), str(file))
        else:
            listed = [line.strip() for line in lines_of(read_text(file, "task.dataset.classes")) if line.strip()]
    names = [str(name) for name in listed]
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice or not names:
        what = f"names {brief(twice[0])} more than once" if twice else "names no class"
        raise ValueError(f"task.dataset.classes {what}. Each output of the model has a name of its own.")
    return tuple(names)


def in_order(found: Any, where: str) -> list[str]:
    """Names of a list, or of {name: number} by their numbers.

    Raises:
        ValueError: it is neither, or numbers are missing.
    """
    if isinstance(found, list) and all(isinstance(name, str) for name in found):
        return found
    if isinstance(found, dict) and found:
        try:
            numbers = {int(number): name for name, number in found.items()}
        except (TypeError, ValueError):
            numbers = {}
        if sorted(numbers) == list(range(len(found))):
            return [numbers[i] for i in range(len(numbers))]
    raise ValueError(
        f"{where} holds {brief(found)}, neither a list of names nor names with numbers from 0 on. Correct it."
    )


def _sample(one: Named) -> Sample:
    identity = file_name(one.name)
    return Sample(id=identity, images=one.pictures, question="", reference=one.label, ability="all")
