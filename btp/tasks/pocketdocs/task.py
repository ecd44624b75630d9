"""The embedded text task: questions about documents that are drawn on demand, the same for a seed and an index."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from btp.tasks.drawn import Drawn, known_abilities
from btp.tasks.pocketdocs.questions import ABILITIES, ask
from btp.tasks.pocketdocs.text import Sentence, count_tokens, draw_text
from btp.tasks.sample import Sample
from btp.tasks.scoring import exact_match, list_f1, normalise

RESERVED = 20  # tokens for the question and the roles of the chat
SHORTEST = 256
BEHIND = "question :"


class PocketDocs(Drawn):
    """Samples of one split; sample i asks for ability i modulo their number, in each of the lengths by turns.

    Splits draw from separate random streams, and share neither a code nor the city of a writer.
    """

    name = "pocketdocs"
    max_new_tokens = 72

    def __init__(
        self,
        split: str,
        seed: int,
        size: int,
        abilities: Sequence[str] | None = None,
        lengths: Sequence[int] = (256, 512, 1024),
    ):
        """
        Args:
            split: train | calibration | validation | test.
            seed: Seed of the texts and questions.
            size: number of samples.
            abilities: a subset of the task's abilities; None = all.
            lengths: tokens that a prompt has at most, question and roles included; it has hardly fewer.

        Raises:
            ValueError: an unknown split or ability, no samples, or a length under 256.
        """
        super().__init__(split, seed, size)
        self.abilities = known_abilities(abilities, list(ABILITIES))
        if not lengths or min(lengths) < SHORTEST:
            raise ValueError(
                f"task.lengths is {list(lengths)}, but every fact of a text has room from {SHORTEST} tokens on. Name "
                "one length or more, none shorter."
            )
        self.lengths = list(lengths)

    def __getitem__(self, index: int) -> Sample:
        turn, place = divmod(index, len(self.abilities))
        ability, length = self.abilities[place], self.lengths[turn % len(self.lengths)]
        rng = self.stream(index)
        asked = None
        while asked is None:
            text = draw_text(rng, self.split, length - RESERVED, ABILITIES[ability][0])
            asked = ask(ability, text, rng)
        question, answer, concerned = asked
        prompt, spans = write(text, question, concerned)
        return Sample(
            id=self.id_of(index),
            images=(),
            question=prompt,
            reference=answer,
            ability=ability,
            spans=spans,
            context=((0, prompt.rindex(BEHIND)),),
        )

    def score(self, sample: Sample, prediction: str) -> float:
        """Exact match; for a poem, F1 over its lines."""
        return (list_f1 if sample.ability == "recite" else exact_match)(prediction, sample.reference)

    def chance(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Score of always giving the commonest answer to a question of the same form."""
        forms: dict[str, dict[str, Counter]] = defaultdict(lambda: defaultdict(Counter))
        for s in samples:
            form = " ".join(s.question.rpartition(BEHIND)[2].split()[:2])
            forms[s.ability][form][normalise(s.reference)] += 1
        return {
            ability: sum(max(c.values()) for c in by_form.values()) / sum(c.total() for c in by_form.values())
            for ability, by_form in forms.items()
        }


def write(
    text: list[Sentence], question: str, concerned: Sequence[Sentence] = ()
) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The prompt, and the (first, behind the last) characters of each sentence in `concerned`."""
    listed = [word for sentence in text for word in sentence.words]
    starts = np.cumsum([0, *(len(word) + 1 for word in listed)])
    spans = tuple((int(starts[s.start]), int(starts[s.end]) - 1) for s in concerned)
    return " ".join([*listed, BEHIND, question]), spans


def tokens_of(prompt: str) -> int:
    """Tokens of a prompt without the roles of the chat."""
    return count_tokens(prompt.split())
