"""What a task hands out, and what it must answer to."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from PIL.Image import Image

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Sample:
    """One question about pictures.

    Attributes:
        id: unique within the task, the same in every run.
        images: pictures in the order in which the prompt shows them; may be empty.
        question: the text behind the pictures.
        reference: the right answer.
        ability: what the question tests; accuracy is reported by it.
        boxes: (x0, y0, x1, y1) of every labelled object of the first picture, in shares of its sides.
        labels: a name per box.
        targets: boxes that hold what the answer needs, where the task knows them.
    """

    id: str
    images: tuple[Image, ...]
    question: str
    reference: str
    ability: str
    boxes: tuple[Box, ...] = ()
    labels: tuple[str, ...] = ()
    targets: tuple[Box, ...] = field(default=())


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
