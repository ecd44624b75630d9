"""The embedded task of picture classifiers: name the one digit among clutter."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from PIL import Image

from btp.tasks.drawn import Drawn
from btp.tasks.pocketboxes.paint import paint
from btp.tasks.pocketboxes.scene import Target, draw_color
from btp.tasks.pocketboxes.task import Scene, box_of
from btp.tasks.sample import Sample
from btp.tasks.scoring import exact_match

SIDE = 64
CLASSES = tuple("0123456789")
CONTRAST = {"clear": (0.75, 1.0), "faint": (0.45, 0.65)}  # ability: how far the digit's colour covers the ground


def draw_digit(rng: np.random.Generator, label: int, ability: str, split: str, clutter: float = 1.0) -> Scene:
    """Draw a picture of [64, 64, 3] that holds one handwritten digit of `split`, 20 to 28 pixels high.

    Args:
        rng: source of everything drawn.
        label: the digit.
        ability: clear | faint.
        split: train | calibration | validation | test.
        clutter: see `paint`.
    """
    side = int(rng.integers(20, 29))
    x, y = (int(v) for v in rng.integers(0, SIDE - side + 1, 2))
    target = Target("digit", label, draw_color(rng), float(rng.uniform(*CONTRAST[ability])), x, y, side)
    picture, masks = paint([target], split, rng, side=SIDE, clutter=clutter)
    return Scene(picture, (target,), masks)


class PocketDigits(Drawn):
    """Pictures of one split; every 20 hold each digit once clear and once faint.

    Splits draw from separate random streams and from separate handwritten digits.
    """

    name = "pocketdigits"
    way = "classify"
    classes = CLASSES

    def scene(self, index: int) -> Scene:
        """Picture `index` with its ground truth.

        Raises:
            IndexError: there is no such picture.
        """
        return draw_digit(self.stream(index), index % 10, self._ability(index), self.split)

    def _ability(self, index: int) -> str:
        return list(CONTRAST)[index // len(CLASSES) % len(CONTRAST)]

    def __getitem__(self, index: int) -> Sample:
        """The picture; its only box is the digit's."""
        scene = self.scene(index)
        box = tuple((box_of(scene.masks[0]) / SIDE).tolist())
        digit = str(scene.targets[0].digit)
        return Sample(
            id=self.id_of(index),
            images=(Image.fromarray(scene.picture),),
            question="",
            reference=digit,
            ability=self._ability(index),
            boxes=(box,),
            labels=(digit,),
            targets=(box,),
        )

    def score(self, sample: Sample, prediction: str) -> float:
        """1 where the digit is right, else 0."""
        return exact_match(prediction, sample.reference)

    def chance(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Share of the commonest digit of each ability."""
        found: dict[str, Counter] = {ability: Counter() for ability in CONTRAST}
        for s in samples:
            found[s.ability][s.reference] += 1
        return {ability: max(c.values()) / c.total() for ability, c in found.items() if c}
