"""The contract of a way of answering: how samples are put to a model, and what two of its answers are compared by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor

from btp.models.loading.load import Loaded
from btp.results.writer import same_text
from btp.runner.arms import Arm
from btp.runner.evaluation.data import Collate
from btp.runner.evaluation.task_protocol import draw
from btp.runner.evaluation.ways.evaluation_loop import Evaluate
from btp.tasks.sample import Sample, Task

Row = Mapping[str, Any]  # of the answers' store
Sizes = Sequence[Sequence[tuple[int, int]]]  # (height, width) of the pictures of each sample


@dataclass(frozen=True)
class Seen:
    """What is known of a run's samples before the first answer.

    Attributes:
        estimates: visual tokens of each sample as its processor says; 0 where it shows no picture.
        totals: visual tokens of each sample as the model counts them.
        pictures: Pictures that a sample shows, the most, tiles counted one by one.
        order: Order of the samples in the batches.
        groups: what samples of one batch have in common; empty where any may share one.
    """

    estimates: Sequence[int]
    totals: Sequence[int]
    pictures: int
    order: list[int]
    groups: Sequence[object] = ()


class Way:
    """How the samples of a task are asked, answered, scored and compared.

    Args:
        task: Task that declares it by its name (`way`).

    Attributes:
        name: Name as tasks write it.
        does: what a model does that answers so, for messages.
        weighs: what the probabilities of `once` are of, for reports.
        asks: what a sample without a question is asked, for reports.
        collate: makes batches.
        evaluate: answers them.
    """

    name: ClassVar[str]
    does: ClassVar[str]
    weighs: ClassVar[str] = "first token"
    asks: ClassVar[str] = ""
    collate: Callable[..., Collate]
    evaluate: type[Evaluate]

    def __init__(self, task: Task):
        self.task = task

    @property
    def collate_once(self) -> Callable[..., Collate]:
        """Makes batches of what a single forward sees, where an answer may take several."""
        return self.collate

    def draw(self, limit: int | None) -> list[Sample]:
        """The samples of a run."""
        return draw(self.task, limit)

    def check(self, loaded: Loaded, samples: Sequence[Sample]) -> None:
        """Refuse a model that does not answer so, or not these samples; before anything is prepared."""
        found = getattr(loaded.host, "read", GENERATE)
        if found != self.name:
            raise ValueError(
                f"task={self.task.name} needs a model that {self.does}, but the one of model.path {DOES[found]}. "
                "Choose another task or another model; README.md lists which go together."
            )

    def look(self, loaded: Loaded, samples: Sequence[Sample], sizes: Sizes) -> Seen:
        """Count visual tokens, order the samples, and refuse what the model cannot take."""
        raise NotImplementedError

    def prompt(self, loaded: Loaded, sample: Sample) -> str | None:
        """The text that the model is given of a sample; None where it is given none."""
        return None

    def scores(self, samples: Sequence[Sample], rows: Mapping[str, Row]) -> list[float]:
        """Score in [0, 1] of each answer of an arm."""
        raise NotImplementedError

    def metrics(self, samples: Sequence[Sample], rows: Mapping[str, Row]) -> dict[str, Any]:
        """What is made of all answers of an arm together: {all: {metric: value}, by_ability: {ability: the same}}; {}
        where there is nothing but scores.
        """
        if not self.sums:
            return {}
        parts = {a: [s for s in samples if s.ability == a] for a in dict.fromkeys(s.ability for s in samples)}
        by_ability = {a: self.summary(some, rows) for a, some in parts.items()} if len(parts) > 1 else {}
        return {"all": self.summary(samples, rows), "by_ability": by_ability}

    @property
    def sums(self) -> bool:
        """Whether there is a `summary`."""
        return True

    def summary(self, samples: Sequence[Sample], rows: Mapping[str, Row]) -> dict[str, float]:
        """Metrics of some answers together, by name."""
        raise NotImplementedError

    def agrees(self, answer: Row, unpruned: Row) -> bool | float:
        """How far an answer is the unpruned one: true or false, or a share."""
        return same_text(answer, unpruned)

    def marks(self, samples: Sequence[Sample], rows: Mapping[str, Row]) -> list[dict[str, Any]]:
        """What a report draws of an arm's answers on their pictures, as marks.parquet has it: sample, label, kind, x0,
        y0, x1, y1; nothing where answers are no boxes.
        """
        return []

    def once(self, loaded: Loaded, inputs: Mapping[str, Tensor], sample: Sample) -> tuple[Row, Tensor]:
        """Answer the only sample of a model's inputs: what its row would hold of the answer, and its log-probabilities
        [V], or [..., V].
        """
        raise NotImplementedError

    def likely(self, loaded: Loaded, first: Tensor, most: int) -> list[tuple[str, float]]:
        """The likeliest of what `once` weighed (`weighs`): names and probabilities, the likeliest first."""
        raise NotImplementedError

    def inert(self, loaded: Loaded, arm: Arm, samples: Sequence[Sample]) -> dict[str, Any]:
        """Answer with the method attached and everything kept, and without the engine: nothing may differ.

        Returns:
            checked samples, whether answers and logits are bit-identical, and the largest difference of a logit.
        """
        raise NotImplementedError

    def picture(
        self, loaded: Loaded, sample: Sample, row: Row | None = None
    ) -> tuple[Image.Image, dict[str, Any]] | None:
        """What the report draws of a sample, and what index.json says of it; None without a picture.

        Args:
            row: Answer of the run's method, which may say what it found in a video.
        """
        raise NotImplementedError


GENERATE = "generate"
DOES = {"generate": "answers in words", "classify": "names classes", "detect": "finds objects"}
