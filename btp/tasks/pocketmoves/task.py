"""The embedded task of video classifiers: name the shape of the red thing and how it moves."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from btp.tasks.drawn import Drawn
from btp.tasks.pocketmoves.paint import paint
from btp.tasks.pocketmoves.scene import CLASSES, MOVES, SIDE, Mover, draw_movers
from btp.tasks.sample import Sample
from btp.tasks.scoring import exact_match


@dataclass(frozen=True)
class Clip:
    """A clip and everything known about it.

    Attributes:
        frames: [16, 64, 64, 3] RGB.
        label: index into CLASSES.
        movers: the things, the red one last.
        boxes: [things, 16, 4] pixels (x0, y0, x1, y1) of each thing in each frame, ends exclusive; the last thing's are
            the evidence, which is in all frames.
    """

    frames: NDArray[np.uint8]
    label: int
    movers: tuple[Mover, ...]
    boxes: NDArray[np.int64]


def draw_clip(rng: np.random.Generator, label: int, split: str) -> Clip:
    """Draw a clip of class `label` with digits of `split`."""
    movers = draw_movers(rng, label)
    frames, boxes = paint(movers, split, rng)
    return Clip(frames, label, tuple(movers), boxes)


class PocketMoves(Drawn):
    """Clips of one split; clip i is of class i modulo their number, so that every 24 clips hold each class once.

    Splits draw from separate random streams and from separate handwritten digits.
    """

    name = "pocketmoves"
    way = "classify"
    classes = CLASSES

    def clip(self, index: int) -> Clip:
        """Clip `index` with its ground truth.

        Raises:
            IndexError: there is no such clip.
        """
        return draw_clip(self.stream(index), index % len(CLASSES), self.split)

    def __getitem__(self, index: int) -> Sample:
        """The clip as frames in order; boxes are those of the first frame, `targets` the red thing's."""
        clip = self.clip(index)
        boxes = [tuple((box[0] / SIDE).tolist()) for box in clip.boxes]
        return Sample(
            id=self.id_of(index),
            images=tuple(Image.fromarray(frame) for frame in clip.frames),
            question="",
            reference=CLASSES[clip.label],
            ability=clip.movers[-1].move,
            boxes=tuple(boxes),
            labels=tuple(f"{m.color} {m.name}" for m in clip.movers),
            targets=(boxes[-1],),
        )

    def score(self, sample: Sample, prediction: str) -> float:
        """1 where the class is right, else 0."""
        return exact_match(prediction, sample.reference)

    def chance(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Share of the commonest class of all, for every ability: nothing but the clip tells the ability."""
        commonest = Counter(s.reference for s in samples).most_common(1)[0][1] / len(samples)
        return {move: commonest for move in MOVES if any(s.ability == move for s in samples)}
