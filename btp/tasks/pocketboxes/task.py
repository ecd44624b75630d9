"""The embedded task of detectors: find things on clutter; boxes and masks are known by construction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from btp.tasks.detection.task import check_threshold
from btp.tasks.drawn import Drawn
from btp.tasks.pocketboxes.paint import paint
from btp.tasks.pocketboxes.scene import NAMES, SIDE, Target, draw_targets
from btp.tasks.sample import Sample


@dataclass(frozen=True)
class Scene:
    """A picture and everything known about it.

    Attributes:
        picture: [96, 96, 3] RGB.
        targets: the things.
        masks: [things, 96, 96], true where a thing is.
    """

    picture: NDArray[np.uint8]
    targets: tuple[Target, ...]
    masks: NDArray[np.bool_]

    @property
    def boxes(self) -> NDArray[np.int64]:
        """[things, 4] pixels (x0, y0, x1, y1) of the smallest box around each mask, ends exclusive."""
        return np.stack([box_of(mask) for mask in self.masks])

    @property
    def labels(self) -> tuple[int, ...]:
        """Index into NAMES of each thing."""
        return tuple(NAMES.index(t.name) for t in self.targets)


def box_of(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Smallest box (x0, y0, x1, y1) around the true pixels of [h, w], ends exclusive."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([cols[0], rows[0], cols[-1] + 1, rows[-1] + 1])


def foreground(masks: NDArray[np.bool_], patch: int) -> NDArray[np.float32]:
    """Share of each patch that things cover.

    Args:
        masks: [things, h, w]; h and w are multiples of `patch`.
        patch: side of a patch in pixels.

    Returns:
        [h / patch, w / patch] in [0, 1].
    """
    h, w = masks.shape[1:]
    tiles = masks.any(0).reshape(h // patch, patch, w // patch, patch)
    return tiles.mean((1, 3), dtype=np.float32)


def draw_scene(rng: np.random.Generator, split: str, clutter: float = 1.0) -> Scene:
    """Draw a picture with digits of `split`; see `paint`."""
    targets = draw_targets(rng)
    picture, masks = paint(targets, split, rng, clutter=clutter)
    return Scene(picture, tuple(targets), masks)


class PocketBoxes(Drawn):
    """Pictures of one split. Splits draw from separate random streams and from separate handwritten digits."""

    name = "pocketboxes"
    way = "detect"
    names = NAMES
    aliases: Mapping[str, Sequence[str]] = MappingProxyType({})

    def __init__(self, split: str, seed: int, size: int, threshold: float = 0.5):
        """
        Args:
            split, seed, size: see `Drawn`.
            threshold: score from which on a box counts as found, in a picture's score and against the unpruned answer.

        Raises:
            ValueError: an unknown split, no samples, or no such score.
        """
        super().__init__(split, seed, size)
        check_threshold(threshold)
        self.threshold = threshold

    def scene(self, index: int) -> Scene:
        """Picture `index` with its ground truth.

        Raises:
            IndexError: there is no such picture.
        """
        return draw_scene(self.stream(index), self.split)

    def __getitem__(self, index: int) -> Sample:
        """The picture with its boxes, all of which the answer needs; the reference names what is there."""
        scene = self.scene(index)
        boxes = tuple(tuple((box / SIDE).tolist()) for box in scene.boxes)
        names = tuple(t.name for t in scene.targets)
        return Sample(
            id=self.id_of(index),
            images=(Image.fromarray(scene.picture),),
            question="",
            reference=" , ".join(names),
            ability="detection",
            boxes=boxes,
            labels=names,
            targets=boxes,
        )

    def truth(self, samples: Sequence[Sample]) -> dict[str, list[dict]]:
        """Ground truth of some samples in COCO's format, in their order."""
        return self.coco([int(sample.id.rpartition("-")[2]) for sample in samples])

    def chance(self, samples: Sequence[Sample]) -> dict[str, float]:
        """0: no box is found by chance."""
        return {sample.ability: 0.0 for sample in samples}

    def coco(self, indices: Sequence[int]) -> dict[str, list[dict]]:
        """Ground truth of some pictures in COCO's format, to be handed to pycocotools as `COCO().dataset`.

        Boxes are (x, y, width, height) in pixels, areas those of the masks; an image's id is its index and a category's
        id its place in NAMES.
        """
        annotations = []
        for index in indices:
            scene = self.scene(index)
            for label, (x0, y0, x1, y1), mask in zip(scene.labels, scene.boxes.tolist(), scene.masks, strict=True):
                annotations.append(
                    {
                        "id": len(annotations) + 1,  # pycocotools takes 0 for "not matched"
                        "image_id": index,
                        "category_id": label,
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": int(mask.sum()),
                        "iscrowd": 0,
                    }
                )
        return {
            "images": [{"id": i, "width": SIDE, "height": SIDE} for i in indices],
            "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES)],
            "annotations": annotations,
        }
