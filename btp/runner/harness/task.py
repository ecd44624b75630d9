"""Tasks of another harness as one task of ours: its documents, prompts and metrics, our arms, batches and store."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from btp.runner.evaluation.task_protocol import Judgement
from btp.runner.harness.document import Document
from btp.runner.harness.quiet import silent
from btp.runner.harness.respond import Prompts, Respond
from btp.runner.harness.settings import LIBRARIES, check_asked
from btp.tasks.sample import Sample
from btp.tasks.scoring import exact_match

SEED = 1234  # with which both harnesses draw examples


class HarnessTask(ABC):
    """Documents of one or more tasks of a harness, which also scores them and sums them up.

    An ability is a task, or a sub-task of a group. Where a task gives no score for each document, the report shows
    whether answer and target say the same; what the task makes of all answers together is in the run's metrics.

    Attributes:
        name: Name of our task, a key of `LIBRARIES`.
        tree: Tasks and groups, as the harness has them; `leaves` are the tasks alone, by name.
        limit: Documents of a task that were drawn at most; None for all.
    """

    name: str
    collate, evaluate = Prompts, Respond

    def __init__(
        self,
        tasks: str | Sequence[str],
        include_path: str | None,
        num_fewshot: int | None,
        generation: Mapping[str, Any] | None,
    ):
        """
        Args:
            tasks: Names of tasks or groups.
            include_path: A folder with yamls of tasks of one's own.
            num_fewshot: Examples in front of each question; None leaves it to each task.
            generation: Settings that replace those of the tasks.

        Raises:
            ValueError: the harness or a task is not there, its data cannot be loaded, or it asks for what is not built.
        """
        check_asked(self.name, tasks, include_path)
        self.tree = self.load([tasks] if isinstance(tasks, str) else list(tasks), include_path)
        self.leaves = leaves_of(self.tree)
        for leaf in self.leaves.values():
            if num_fewshot is not None and leaf.config.num_fewshot != 0:  # a task that says 0 cannot do otherwise
                leaf.set_config(key="num_fewshot", value=num_fewshot)
            leaf.set_fewshot_seed(SEED)
            if generation and leaf.config.generation_kwargs is not None:
                leaf.set_config(key="generation_kwargs", value=dict(generation), update=True)
        self.limit: int | None = None
        self._drawn: list[Document] | None = None
        self._judged: tuple[Mapping[str, Any], Judgement] | None = None

    @abstractmethod
    def load(self, names: Sequence[str], include_path: str | None) -> dict[Any, Any]:
        """The harness's tree of tasks and groups, with their data.

        Raises:
            ValueError: an unknown name, with the nearest ones; data that cannot be loaded; a task that is not built.
        """

    @abstractmethod
    def documents(self, name: str, leaf: Any) -> list[Document]:
        """Documents of a task whose requests are built.

        Raises:
            ValueError: the task asks for what is not built.
        """

    @abstractmethod
    def judged(self, rows: Mapping[str, Mapping[str, Any]]) -> Judgement:
        """What the harness makes of an arm's answers.

        Raises:
            ValueError: one of its metrics cannot sum these up.
        """

    @property
    def drawn(self) -> list[Document]:
        """The documents of a run; none before `draw`."""
        return self._drawn or []

    @property
    def max_new_tokens(self) -> int:
        """The most that a document allows."""
        return max((document.max_new_tokens for document in self.drawn), default=0) or 1

    def __getitem__(self, index: int) -> Document:
        return (self.draw(None) if self._drawn is None else self._drawn)[index]

    def draw(self, limit: int | None) -> list[Document]:
        """The first documents of each task.

        Args:
            limit: Documents of a task; None for all.

        Raises:
            ValueError: a task asks for what is not built.
        """
        drawn: list[Document] = []
        for name, leaf in self.leaves.items():
            with silent():
                leaf.build_all_requests(limit=limit, rank=0, world_size=1)
            drawn += self.documents(name, leaf)
        self.limit, self._drawn = limit, drawn
        return drawn

    def score(self, sample: Sample, prediction: str) -> float:
        """Whether an answer and its target say the same; what the harness makes of it is in `judge`."""
        return exact_match(prediction, sample.reference)

    def chance(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Nothing: the harness scores answers of a model alone."""
        return {}

    def judge(self, rows: Mapping[str, Mapping[str, Any]]) -> Judgement:
        """Have the harness score and sum up an arm's answers, once.

        Raises:
            ValueError: one of its metrics cannot sum these up.
        """
        if self._judged is None or self._judged[0] is not rows:
            self._judged = rows, self.judged(rows)
        return self._judged[1]


def leaves_of(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """The tasks of a tree, without its groups, by name."""
    found: dict[str, Any] = {}
    for name, node in tree.items():
        found |= leaves_of(node) if isinstance(node, Mapping) else {str(name): node}
    return found


def by_document(requests: Iterable[Any], key_of: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    """All requests about a document, by its key; a task with repeats asks the same several times, and counts once."""
    together: dict[Any, dict[int, Any]] = {}
    for request in requests:
        together.setdefault(key_of(request), {}).setdefault(request.idx, request)
    return {key: [*asked.values()] for key, asked in together.items()}


def document_id(task: str, number: int) -> str:
    """Name of a document, fit for files."""
    return re.sub(r"[^\w.-]", "_", f"{task}-{number:06d}")


def endings(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Texts behind which a generated answer is cut off."""
    until = settings.get("until") or ()
    return (until,) if isinstance(until, str) else tuple(until)


def check_greedy(name: str, task: str, settings: Mapping[str, Any]) -> None:
    """Refuse tasks that sample or search for answers.

    Args:
        name: Name of our task, a key of `LIBRARIES`.
        task: Name in the harness.
        settings: Settings of generation.

    Raises:
        ValueError: names the settings.
    """
    if settings.get("do_sample") or (settings.get("num_beams") or 1) > 1 or (settings.get("temperature") or 0) > 0:
        asked = ", ".join(
            f"{key}: {settings[key]}" for key in ("do_sample", "temperature", "num_beams") if key in settings
        )
        raise ValueError(
            f"{LIBRARIES[name].name} task {task} asks for answers by {asked}, but arms are compared by greedy answers. "
            "Set task.dataset.generation={do_sample: false, temperature: 0, num_beams: 1} for all tasks of the run "
            "(--gen_kwargs on the harness's own command line)."
        )


def target_text(leaf: Any, doc: Mapping[str, Any]) -> str:
    """The right answer as text; empty where the task keeps it hidden or needs the picture for it."""
    try:
        target = leaf.doc_to_target(doc)
        if isinstance(target, int) and leaf.config.doc_to_choice is not None:
            target = leaf.doc_to_choice(doc)[target]
    except (KeyError, IndexError, TypeError):
        return ""
    return " | ".join(map(str, target)) if isinstance(target, list) else str(target).strip()
