"""Samples, and the protocol of tasks that hand them out and score answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from PIL.Image import Image

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Sample:
    """One question about pictures, or about a text.

    Attributes:
        id: unique within the task, the same in every run, fit for a file name.
        images: pictures in the order in which the prompt shows them; may be empty, and may open each only when it is
            looked at (btp/tasks/files/images.py). Count them by len, which opens none.
        question: the text behind the pictures.
        reference: the right answer.
        ability: what the question tests; accuracy is reported by it.
        boxes: (x0, y0, x1, y1) of every labelled object of the first picture, in shares of its sides.
        labels: a name per box.
        targets: boxes that hold what the answer needs, where the task knows them.
        references: every answer that people gave, where there are several; `reference` is then the commonest.
        choices: texts of the options A, B, C ... of multiple choice; `reference` is then a letter.
        spans: (first, behind the last) characters of `question` that hold what the answer needs, where the task knows
            them.
        context: (first, behind the last) characters of `question` that can be left out and leave the question: the
            text that it is about, where the task knows it.
        chat: False where the prompt is the text alone, whatever chat template the model has.
        max_new_tokens: Tokens of the longest answer; None is the task's.
        earlier: a question about the same pictures that was asked before this one; "" where there was none.
        group: what samples that are scored together have in common; "" where a sample stands alone.
        clips: videos behind the pictures, each its frames in order; may open each frame only when it is looked at.
        evidence: numbers of the frames of the first clip that hold what the answer needs, where the task knows them.
        duration: The group of lengths that the first clip is in, as a benchmark reports by; "" where it does not.
    """

    id: str
    images: Sequence[Image]
    question: str
    reference: str
    ability: str
    boxes: tuple[Box, ...] = ()
    labels: tuple[str, ...] = ()
    targets: tuple[Box, ...] = field(default=())
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()
    context: tuple[tuple[int, int], ...] = ()
    chat: bool = True
    max_new_tokens: int | None = None
    group: str = ""
    clips: tuple[Sequence[Image], ...] = ()
    evidence: tuple[int, ...] = ()
    duration: str = ""
    earlier: str = ""

    @property
    def answers(self) -> tuple[str, ...]:
        """The references, or the only one."""
        return self.references or (self.reference,)

    @property
    def bare_question(self) -> str:
        """The question without its context."""
        kept, at = [], 0
        for first, end in self.context:
            kept.append(self.question[at:first])
            at = end
        return "".join([*kept, self.question[at:]])


class Task(Protocol):
    """A set of samples and how answers to them are scored. It knows no model and no pruner."""

    name: str
    max_new_tokens: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def score(self, sample: Sample, prediction: str) -> float:
        """Score in [0, 1] of an answer."""
        ...

    def chance(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Score per ability of the best answer that ignores the pictures."""
        ...


@runtime_checkable
class Corpus(Protocol):
    """A task that also has metrics of many answers together, such as F1."""

    def scores(self, samples: Sequence[Sample], predictions: Sequence[str]) -> list[float]:
        """Score in [0, 1] of each answer, where it may depend on the others."""
        ...

    def summary(self, samples: Sequence[Sample], predictions: Sequence[str]) -> dict[str, float]:
        """Metrics by name, on their own scales."""
        ...


@runtime_checkable
class Local(Protocol):
    """A dataset that was read from files, which somebody may change."""

    def content(self) -> dict[str, object]:
        """`digest` names what the files hold; anything else is on record beside it."""
        ...
