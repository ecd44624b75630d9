"""Labels in COCO's format (Lin et al. 2014, arXiv:1405.0312): COCO itself, and what tools for labelling export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from btp.tasks.detection.boxes import box_within
from btp.tasks.detection.task import Labelled, Object
from btp.tasks.files.entries import Entry
from btp.tasks.files.local import Place
from btp.tasks.shown import brief, short

SOURCE = "val2017.zip and annotations_trainval2017.zip of cocodataset.org"


class CocoFiles:
    """Reads a JSON file of images, categories and annotations, and the pictures that it names.

    Args:
        path: folder with both, or the JSON file itself.
        annotations: the JSON file below the folder; None where path is the file.
        images: folder of the pictures below the folder, or beside the file; None is that folder itself.

    Raises:
        ValueError: a file is missing, or lists no category.
    """

    aliases: Mapping[str, Sequence[str]] = MappingProxyType({})

    def __init__(self, path: str, annotations: str | None = None, images: str | None = None):
        where = Path(path)
        if annotations is None and where.suffix.lower() == ".json":
            where, annotations = where.parent, where.name
        if annotations is None:
            raise ValueError(
                f"task.path is {path}, a folder, and nothing says which file in it has the labels. Set task.path to "
                "the JSON file, or task.dataset.reader.annotations to its name."
            )
        layout = f"{annotations} (COCO's format) and the pictures that it names in {images or 'the same folder'}"
        self.place = Place(where, "A task of labelled boxes", layout, SOURCE)
        self.images, self.where = images, str(where / annotations)
        self.found = self.place.entry(annotations, "task.dataset.reader.annotations")
        categories = self.found.entries("categories")
        self._names = {_number(c, "id"): str(c["name"]) for c in categories}
        self.names = tuple(self._names[i] for i in sorted(self._names))
        if not self.names or len(set(self.names)) < len(categories):
            raise ValueError(
                f"{self.where}: `categories` lists {brief([c['name'] for c in categories])}, but each needs a name "
                "and an id of its own, and there must be one. Correct them."
            )

    def read(self) -> list[Labelled]:
        """All pictures in the order of the file, those without an object too."""
        if self.images is not None:
            self.place.find(self.images, "task.dataset.reader.images")
        images = {_number(one, "id"): one for one in self.found.entries("images")}
        objects: dict[int, list[Object]] = {key: [] for key in images}
        for one in self.found.entries("annotations"):
            image = _number(one, "image_id")
            if image not in images:
                raise ValueError(
                    f"{one.where}: `image_id` is {image}, but `images` lists no such id. Correct the annotation, or "
                    "add its picture."
                )
            objects[image].append(self._object(one, images[image]))
        return [
            Labelled(
                str(one["file_name"]),
                self.place.root / (self.images or "") / str(one["file_name"]),
                _number(one, "width", 1),
                _number(one, "height", 1),
                tuple(objects[key]),
            )
            for key, one in images.items()
        ]

    def _object(self, one: Entry, image: Entry) -> Object:
        category = _number(one, "category_id")
        if category not in self._names:
            known = ", ".join(f"{i} {name}" for i, name in sorted(self._names.items()))
            raise ValueError(
                f"{one.where}: `category_id` is {category}, but `categories` has no such id (there are "
                f"{short(known)}). Correct it."
            )
        box = one["bbox"]
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
            raise ValueError(f"{one.where}: `bbox` is {brief(box)}, not [x, y, width, height] in pixels. Correct it.")
        x, y, wide, high = box
        sides = (_number(image, "width", 1), _number(image, "height", 1))
        corners = box_within((x, y, x + wide, y + high), *sides, f"{one.where}: `bbox`", str(image["file_name"]))
        area = one.get("area", wide * high)
        if isinstance(area, bool) or not isinstance(area, int | float):
            raise ValueError(f"{one.where}: `area` is {brief(area)}, not a number of pixels. Correct or remove it.")
        return Object(self._names[category], corners, float(area), bool(one.get("iscrowd", 0)))


def _number(one: Entry, key: str, least: int = 0) -> int:
    found: Any = one[key]
    if isinstance(found, bool) or not isinstance(found, int) or found < least:
        raise ValueError(f"{one.where}: `{key}` is {brief(found)}, not a whole number from {least} on. Correct it.")
    return found
