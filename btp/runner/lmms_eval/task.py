"""Tasks of lmms-eval as one task of ours: its documents, prompts and metrics, our arms, batches and answers' store."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from btp.runner.evaluation.task_protocol import Judgement
from btp.runner.harness.document import Document
from btp.runner.harness.quiet import hush, reason_of, silent
from btp.runner.harness.respond import Prompts, Respond
from btp.runner.harness.settings import NAME, check_folder, check_installed, check_names
from btp.runner.lmms_eval.requests import as_documents, refuse_rounds
from btp.tasks.sample import Sample
from btp.tasks.scoring import exact_match

SEED = 1234  # with which lmms-eval draws examples


class HarnessTask:
    """Documents of one or more tasks of lmms-eval, which it also scores and sums up.

    An ability is a task, or a sub-task of a group. Where a task gives no score for each document, the report shows
    whether answer and target say the same; what the task makes of all answers together is in the run's metrics.
    """

    name = NAME
    collate, evaluate = Prompts, Respond

    def __init__(
        self,
        tasks: str | Sequence[str],
        include_path: str | None,
        num_fewshot: int | None,
        prompts: str | None,
        generation: Mapping[str, Any] | None,
    ):
        """
        Args:
            tasks: names of tasks or groups.
            include_path: a folder with yamls of tasks of one's own, searched with its subfolders.
            num_fewshot: examples in front of each question; None leaves it to each task.
            prompts: the model whose wording is taken where a task has several; None takes its default.
            generation: settings that replace those of the tasks.

        Raises:
            ValueError: lmms-eval or a task is not there, its data cannot be loaded, or it asks for what is not built.
        """
        check_names(tasks)
        check_folder(include_path)
        check_installed()
        names = [tasks] if isinstance(tasks, str) else list(tasks)
        self._tree = load_tasks(names, include_path, prompts)
        self.leaves = leaves_of(self._tree)
        for name, leaf in self.leaves.items():
            refuse_rounds(name, leaf.OUTPUT_TYPE)
            _refuse_bare_choices(name, leaf)
            if num_fewshot is not None and leaf.config.num_fewshot != 0:  # a task that says 0 cannot do otherwise
                leaf.set_config(key="num_fewshot", value=num_fewshot)
            leaf.set_fewshot_seed(SEED)
            if generation and leaf.config.generation_kwargs is not None:
                leaf.set_config(key="generation_kwargs", value=dict(generation), update=True)
        self._limit: int | None = None
        self._drawn: list[Document] | None = None
        self._judged: tuple[Mapping[str, Any], Judgement] | None = None

    @property
    def max_new_tokens(self) -> int:
        """The most that a document allows."""
        return max((document.max_new_tokens for document in self._drawn or ()), default=0) or 1

    def __len__(self) -> int:
        return sum(len(leaf.eval_docs_no_media) for leaf in self.leaves.values())

    def __getitem__(self, index: int) -> Document:
        if self._drawn is None:
            self.draw(None)
        assert self._drawn is not None
        return self._drawn[index]

    def draw(self, limit: int | None) -> list[Document]:
        """The first documents of each task.

        Args:
            limit: documents of a task; None for all.

        Raises:
            ValueError: a task asks for what is not built.
        """
        drawn: list[Document] = []
        for leaf in self.leaves.values():
            with silent():
                leaf.build_all_requests(limit=limit, rank=0, world_size=1)
            key = leaf.config.task
            split = leaf.config.test_split if leaf.has_test_docs() else leaf.config.validation_split
            references = _References(leaf, key, leaf.dataset_no_image[split])
            mine = as_documents(leaf.instances, {key: leaf.dataset}, references)
            if mine:
                mine[0].show()  # type: ignore[misc]  # what cannot be shown is said now, and not in the middle of a run
            drawn += mine
        self._limit, self._drawn = limit, drawn
        return drawn

    def score(self, sample: Sample, prediction: str) -> float:
        """Whether an answer and its target say the same; what lmms-eval says of it is in `judge`."""
        return exact_match(prediction, sample.reference)

    def chance(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Nothing: lmms-eval scores answers of a model alone."""
        return {}

    def judge(self, rows: Mapping[str, Mapping[str, Any]]) -> Judgement:
        """Have lmms-eval score and sum up an arm's answers, once.

        Raises:
            ValueError: one of its metrics cannot sum these up.
        """
        from btp.runner.lmms_eval.judge import judged

        assert self._drawn is not None
        if self._judged is None or self._judged[0] is not rows:
            self._judged = rows, judged(self._tree, self.leaves, self._drawn, rows, self._limit)
        return self._judged[1]


class _References(Mapping):
    """Right answers, looked up when a document asks."""

    def __init__(self, leaf: Any, task: str, docs: Any) -> None:
        self.leaf, self.task, self.docs = leaf, task, docs

    def __getitem__(self, key: tuple[str, int]) -> str:
        doc = self.docs[key[1]]
        try:
            target = self.leaf.doc_to_target(doc)
            if isinstance(target, int) and self.leaf.config.doc_to_choice is not None:
                target = self.leaf.doc_to_choice(doc)[target]
        except (KeyError, IndexError, TypeError):  # a target that needs the picture, or that the split keeps hidden
            return ""
        return " | ".join(map(str, target)) if isinstance(target, list) else str(target)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return ((self.task, number) for number in range(len(self.docs)))

    def __len__(self) -> int:
        return len(self.docs)


def load_tasks(names: Sequence[str], include_path: str | None, prompts: str | None) -> dict[Any, Any]:
    """lmms-eval's tree of tasks and groups, with their data.

    Tasks that build their own chat turns are loaded for models with a chat template, all others for a picture and a
    text, which is the only way in which likelihoods are asked for.

    Raises:
        ValueError: an unknown name, with the nearest ones; data that cannot be loaded.
    """
    with silent():
        from lmms_eval.tasks import TaskManager, get_task_dict

        hush()
        index = TaskManager(include_path=include_path, model_name=prompts or "btp")
        tree: dict[Any, Any] = {}
        for name in names:
            if name not in index.all_tasks:
                raise ValueError(_unknown(name, index.all_tasks, include_path))
            try:
                mine = get_task_dict([name], index, "simple")
                if all(_takes_turns(leaf) for leaf in leaves_of(mine).values()):
                    mine = get_task_dict([name], index, "chat")
            except Exception as error:
                raise ValueError(_no_data(name, error)) from error
            tree |= mine
    return tree


def leaves_of(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """The tasks of a tree, without its groups, by name."""
    found: dict[str, Any] = {}
    for name, node in tree.items():
        found |= leaves_of(node) if isinstance(node, Mapping) else {str(name): node}
    return found


def _takes_turns(leaf: Any) -> bool:
    return leaf.OUTPUT_TYPE == "generate_until" and leaf.config.doc_to_messages is not None


def _refuse_bare_choices(name: str, leaf: Any) -> None:
    if "acc_mutual_info" in leaf.aggregation():
        raise ValueError(
            f"lmms-eval task {name} asks for the likelihood of a choice without its prompt (metric acc_mutual_info), "
            "which lmms-eval itself cannot build. Take it out of the task's metric_list, or leave out the task."
        )


def _unknown(name: str, known: Sequence[str], include_path: str | None) -> str:
    near = difflib.get_close_matches(name, known, 3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    where = "" if include_path is None else f", nor has the folder {include_path} one"
    return (
        f"tasks names {name}, but lmms-eval has no such task{where}.{hint} `lmms-eval tasks list` shows all; "
        "task.dataset.include_path=FOLDER adds your own."
    )


def _no_data(name: str, error: BaseException) -> str:
    return (
        f"lmms-eval task {name} cannot be loaded: {reason_of(error)}. Its data come from the hub on first use: "
        "start the run once with access to it (some need `hf auth login`), or copy the cache of a machine that has "
        "them and set HF_HOME. For a task of your own, see the paths in its yaml."
    )
