"""The embedded task: questions about scenes that are drawn on demand, the same for a seed and an index."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from PIL import Image

from btp.tasks.drawn import Drawn, known_abilities
from btp.tasks.pocketvqa.draw import paint
from btp.tasks.pocketvqa.layout import Thing, draw_layout
from btp.tasks.pocketvqa.questions import ABILITIES, ask
from btp.tasks.sample import Sample
from btp.tasks.scoring import exact_match, list_f1, normalise

EARLIER = 9  # apart from the streams of the splits


class PocketVQA(Drawn):
    """Samples of one split; sample i asks for ability i modulo their number.

    Splits draw from separate random streams and from separate handwritten digits, so that they share neither
    a scene nor a digit image.
    """

    name = "pocketvqa"
    max_new_tokens = 48

    def __init__(self, split: str, seed: int, size: int, abilities: Sequence[str] | None = None, earlier: bool = False):
        """
        Args:
            split: train | calibration | validation | test.
            seed: Seed of the scenes and questions.
            size: number of samples.
            abilities: a subset of the task's abilities; None = all.
            earlier: each sample also has a question of another ability about its picture, asked before its own.

        Raises:
            ValueError: an unknown split or ability, or no samples.
        """
        super().__init__(split, seed, size)
        self.abilities = known_abilities(abilities, ABILITIES)
        self.earlier = earlier

    def __getitem__(self, index: int) -> Sample:
        ability = self.abilities[index % len(self.abilities)]
        rng = self.stream(index)
        asked = None
        while asked is None:
            things = draw_layout(rng)
            asked = ask(ability, things, rng)
        question, answer, concerned = asked
        picture = Image.fromarray(paint(things, self.split, rng))
        return Sample(
            id=self.id_of(index),
            images=(picture,),
            question=question,
            reference=answer,
            ability=ability,
            boxes=tuple(t.box for t in things),
            labels=tuple(t.phrase for t in things),
            targets=tuple(t.box for t in concerned),
            earlier=self._other(index, ability, things) if self.earlier else "",
        )

    def _other(self, index: int, ability: str, things: list[Thing]) -> str:
        """A question of another ability about the scene, from a stream of its own: the sample stays as it is."""
        rng = np.random.default_rng([self.seed, EARLIER, index])
        others = [name for name in ABILITIES if name not in (ability, "describe")]
        asked = None
        while asked is None:  # a count that is drawn may not be there
            asked = ask(str(rng.choice(others)), things, rng)
        return asked[0]

    def score(self, sample: Sample, prediction: str) -> float:
        """Exact match; for a description, F1 over its objects."""
        return (list_f1 if sample.ability == "describe" else exact_match)(prediction, sample.reference)

    def chance(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Score of always giving the commonest answer to a question of the same form."""
        forms: dict[str, dict[str, Counter]] = defaultdict(lambda: defaultdict(Counter))
        for s in samples:
            form = " ".join(s.question.split()[:2])
            forms[s.ability][form][normalise(s.reference)] += 1
        return {
            ability: sum(max(c.values()) for c in by_form.values()) / sum(c.total() for c in by_form.values())
            for ability, by_form in forms.items()
        }
