"""The embedded task of video LVLMs: questions about clips of events that are drawn on demand."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from btp.tasks.drawn import Drawn, known_abilities
from btp.tasks.pocketclips.paint import paint
from btp.tasks.pocketclips.questions import ABILITIES, ask
from btp.tasks.pocketclips.scene import Event, draw_events
from btp.tasks.sample import Sample
from btp.tasks.scoring import exact_match, list_f1, normalise


@dataclass(frozen=True)
class Scene:
    """A clip and a question about it.

    Attributes:
        frames: [16, 64, 64, 3] RGB, one second apart.
        events: Events of the clip in order.
        question, answer: Question of the ability asked for, and its answer.
        concerned: the events that one has to look at.
    """

    frames: NDArray[np.uint8]
    events: tuple[Event, ...]
    question: str
    answer: str
    concerned: tuple[Event, ...]


class PocketClips(Drawn):
    """Samples of one split; sample i asks for ability i modulo their number.

    Splits draw from separate random streams and from separate handwritten digits.
    """

    name = "pocketclips"
    max_new_tokens = 32

    def __init__(self, split: str, seed: int, size: int, abilities: Sequence[str] | None = None):
        """
        Args:
            split: train | calibration | validation | test.
            seed: Seed of the clips and questions.
            size: number of samples.
            abilities: a subset of the task's abilities; None = all.

        Raises:
            ValueError: an unknown split or ability, or no samples.
        """
        super().__init__(split, seed, size)
        self.abilities = known_abilities(abilities, tuple(ABILITIES))

    def scene(self, index: int) -> Scene:
        """Clip `index` with its question and its ground truth.

        Raises:
            IndexError: there is no such sample.
        """
        rng = self.stream(index)
        asked = None
        while asked is None:
            events = draw_events(rng)
            asked = ask(self.abilities[index % len(self.abilities)], events, rng)
        return Scene(paint(events, self.split, rng), tuple(events), *asked)

    def __getitem__(self, index: int) -> Sample:
        """The clip as one video; `evidence` are the frames of the events that the question is about."""
        scene = self.scene(index)
        return Sample(
            id=self.id_of(index),
            images=(),
            clips=(tuple(Image.fromarray(frame) for frame in scene.frames),),
            question=scene.question,
            reference=scene.answer,
            ability=self.abilities[index % len(self.abilities)],
            evidence=tuple(frame for event in scene.concerned for frame in event.frames),
        )

    def score(self, sample: Sample, prediction: str) -> float:
        """Exact match; for a description, F1 over its events."""
        return (list_f1 if sample.ability == "describe" else exact_match)(prediction, sample.reference)

    def chance(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Score of always giving the commonest answer to a question of the same form."""
        forms: dict[str, dict[str, Counter]] = defaultdict(lambda: defaultdict(Counter))
        for s in samples:
            form = " ".join(s.question.split()[:3])
            forms[s.ability][form][normalise(s.reference)] += 1
        return {
            ability: sum(max(c.values()) for c in by_form.values()) / sum(c.total() for c in by_form.values())
            for ability, by_form in forms.items()
        }
