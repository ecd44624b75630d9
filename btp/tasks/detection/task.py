"""Finding objects: what tasks with labelled boxes share, and the one of local files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from btp.tasks.files.images import PictureFile, Pictures
from btp.tasks.files.local import file_name
from btp.tasks.sample import Box, Sample
from btp.tasks.vqa import digest_of, named, shuffled


@dataclass(frozen=True)
class Object:
    """A labelled object.

    Attributes:
        name: Name of its category.
        box: (x0, y0, x1, y1) in pixels.
        area: Area in pixels, of its mask where there is one.
        crowd: a region that stands for several, or is hard to tell: whatever is found there counts neither way.
    """

    name: str
    box: Box
    area: float
    crowd: bool = False


@dataclass(frozen=True)
class Labelled:
    """A picture with its objects.

    Attributes:
        name: what messages and ids call it.
        source: Source of the picture.
        width, height: Size in pixels.
        objects: labelled in it.
    """

    name: str
    source: Path
    width: int
    height: int
    objects: tuple[Object, ...]


class BoxReader(Protocol):
    """Reads one layout of labelled pictures."""

    names: Sequence[str]
    aliases: Mapping[str, Sequence[str]]

    def read(self) -> list[Labelled]:
        """All pictures, which are not opened.

        Raises:
            ValueError: a file is missing or broken, or a label makes no sense; names file and key.
        """
        ...


class Boxes:
    """Pictures with labelled boxes from local files.

    Args:
        name: Name of the task.
        reader: Reader of the files.
        threshold: score from which on a box counts as found: in the score of a picture, and against the unpruned
            answer. Average precision takes all of them.
        shuffle_seed: order in which pictures are asked, so that limit draws from all of them; None keeps the files'.

    Raises:
        ValueError: files are missing or broken, or there is no picture.
    """

    way = "detect"

    def __init__(self, name: str, reader: BoxReader, threshold: float, shuffle_seed: int | None = None):
        check_threshold(threshold)
        self.name, self.threshold = name, threshold
        found = reader.read()
        if not found:
            raise ValueError("task.path holds no picture. Name files that list some.")
        self.names, self.aliases = tuple(reader.names), reader.aliases
        samples = named([_sample(one) for one in found])
        self._labelled = {sample.id: one for sample, one in zip(samples, found, strict=True)}
        self._samples = samples if shuffle_seed is None else shuffled(samples, shuffle_seed)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        sample = self._samples[index]
        sample.images.check()  # type: ignore[attr-defined]
        return sample

    def truth(self, samples: Sequence[Sample]) -> dict[str, list[dict[str, Any]]]:
        """Ground truth of some samples in COCO's format, in their order."""
        return coco_of([self._labelled[sample.id] for sample in samples], self.names)

    def chance(self, samples: Sequence[Sample]) -> dict[str, float]:
        """0: no box is found by chance."""
        return {sample.ability: 0.0 for sample in samples}

    def content(self) -> dict[str, object]:
        """A digest of all labels, and of names, sizes and both ends of the pictures' files."""
        return {"digest": digest_of(sorted(self._samples, key=lambda s: s.id))}


def check_threshold(threshold: float) -> None:
    """Refuse a score that no box can have, or every one has.

    Raises:
        ValueError: it is not between 0 and 1.
    """
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold < 1:
        raise ValueError(f"task.dataset.threshold is {threshold!r}. Set it to a score between 0 and 1, such as 0.5.")


def coco_of(labelled: Sequence[Labelled], names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Labels in COCO's format; an image's id is its place, a category's its place in `names`."""
    annotations = [
        {
            "image_id": image,
            "category_id": list(names).index(one.name),
            "bbox": [one.box[0], one.box[1], one.box[2] - one.box[0], one.box[3] - one.box[1]],
            "area": one.area,
            "iscrowd": int(one.crowd),
        }
        for image, mine in enumerate(labelled)
        for one in mine.objects
    ]
    return {
        "images": [{"id": i, "width": one.width, "height": one.height} for i, one in enumerate(labelled)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
        "annotations": [{"id": i, **one} for i, one in enumerate(annotations, 1)],  # pycocotools takes 0 for no match
    }


def _sample(one: Labelled) -> Sample:
    sides = (one.width, one.height, one.width, one.height)
    whole = [o for o in one.objects if not o.crowd and o.box[0] < o.box[2] and o.box[1] < o.box[3]]
    boxes = tuple(tuple(v / side for v, side in zip(o.box, sides, strict=True)) for o in whole)
    names = tuple(o.name for o in whole)
    return Sample(
        id=file_name(one.name),
        images=Pictures(one.name, [PictureFile(one.source)]),
        question="",
        reference=" , ".join(names) or "nothing",
        ability="detection",
        boxes=boxes,  # type: ignore[arg-type]
        labels=names,
        targets=boxes,  # type: ignore[arg-type]
    )
