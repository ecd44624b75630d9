"""Tasks of EleutherAI's lm-eval as one task of ours: its documents, prompts and metrics, our arms and answers' store.

A continuation is scored token by token behind the prompt, as if it had been generated: a likelihood taken in one
forward has no decode step, and a method that evicts from the cache would do nothing in it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from btp.models.text_processor import PLAIN
from btp.runner.evaluation.task_protocol import Judgement
from btp.runner.harness.document import Document, Shown
from btp.runner.harness.quiet import reason_of, silent
from btp.runner.harness.respond import Prompts
from btp.runner.lm_eval.respond import Respond
from btp.runner.lm_eval.settings import NAME, check_folder, check_installed, check_names
from btp.runner.lmms_eval.task import leaves_of
from btp.tasks.sample import Sample
from btp.tasks.scoring import exact_match

SEED = 1234  # with which lm-eval draws examples
LONGEST = 256  # new tokens where a task does not say, as in lm-eval's own models
KINDS = ("loglikelihood", "generate_until")


class LMEvalTask:
    """Documents of one or more tasks of lm-eval, which it also scores and sums up.

    An ability is a task, or a sub-task of a group.
    """

    name = NAME
    collate, evaluate = Prompts, Respond

    def __init__(
        self,
        tasks: str | Sequence[str],
        include_path: str | None,
        num_fewshot: int | None,
        chat: bool,
        generation: Mapping[str, Any] | None,
    ):
        """
        Args:
            tasks: names of tasks or groups.
            include_path: a folder with yamls of tasks of one's own.
            num_fewshot: examples in front of each question; None leaves it to each task.
            chat: put each prompt into a turn of the model's chat template; otherwise it is the prompt as it is.
            generation: settings that replace those of the tasks.

        Raises:
            ValueError: lm-eval or a task is not there, its data cannot be loaded, or it asks for what is not built.
        """
        check_names(tasks, NAME, "[hellaswag,arc_easy]")
        check_folder(include_path)
        check_installed()
        names = [tasks] if isinstance(tasks, str) else list(tasks)
        self._tree, self._role = load_tasks(names, include_path), "user" if chat else PLAIN
        self.leaves = leaves_of(self._tree)
        for leaf in self.leaves.values():
            if num_fewshot is not None and leaf.config.num_fewshot != 0:
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
        return sum(len(list(leaf.eval_docs)) for leaf in self.leaves.values())

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
        for name, leaf in self.leaves.items():
            with silent():
                leaf.build_all_requests(limit=limit, rank=0, world_size=1)
            together: dict[int, dict[int, Any]] = {}
            for request in leaf.instances:  # a task with repeats asks the same several times
                together.setdefault(int(request.doc_id), {}).setdefault(request.idx, request)
            drawn += [self._document(name, leaf, n, [*asked.values()]) for n, asked in together.items()]
        self._limit, self._drawn = limit, drawn
        return drawn

    def _document(self, name: str, leaf: Any, number: int, requests: Sequence[Any]) -> Document:
        first = requests[0]
        if first.request_type not in KINDS or len({request.args[0] for request in requests}) > 1:
            raise ValueError(
                f"lm-eval task {name} asks for {first.request_type} of {len(requests)} prompts a document, but arms "
                f"are compared by one prompt and its continuations, or by greedy answers. Leave {name} out of tasks."
            )
        choices = first.request_type == "loglikelihood"
        settings: Mapping[str, Any] = {} if choices else first.args[1]
        if settings.get("do_sample") or (settings.get("num_beams") or 1) > 1 or (settings.get("temperature") or 0) > 0:
            raise ValueError(
                f"lm-eval task {name} asks for sampled answers, but arms are compared by greedy ones. Set "
                "task.dataset.generation={do_sample: false, temperature: 0} for all tasks of the run."
            )
        until = settings.get("until") or ()
        turn = {"role": self._role, "content": [{"type": "text", "text": first.args[0]}]}
        return Document(
            id=re.sub(r"[^\w.-]", "_", f"{name}-{number:06d}"),
            images=(),
            question=first.args[0],
            reference=reference(leaf, first.doc),
            ability=name,
            show=partial(Shown, (turn,), ()),
            task=name,
            number=number,
            continuations=tuple(request.args[1] for request in requests) if choices else (),
            max_new_tokens=int(settings.get("max_gen_toks") or LONGEST),
            until=(until,) if isinstance(until, str) else tuple(until),
            chat=self._role != PLAIN,
        )

    def score(self, sample: Sample, prediction: str) -> float:
        """Whether an answer and its target say the same; what lm-eval says of it is in `judge`."""
        return exact_match(prediction, sample.reference)

    def chance(self, samples: Sequence[Sample]) -> dict[str, float]:
        """One of the choices, where all are scored."""
        counts: dict[str, list[float]] = {}
        for sample in samples:
            choices = getattr(sample, "continuations", ())
            counts.setdefault(sample.ability, []).append(1 / len(choices) if len(choices) > 1 else 0.0)
        return {ability: sum(each) / len(each) for ability, each in counts.items() if all(each)}

    def judge(self, rows: Mapping[str, Mapping[str, Any]]) -> Judgement:
        """Have lm-eval score and sum up an arm's answers, once.

        Raises:
            ValueError: one of its metrics cannot sum these up.
        """
        from btp.runner.lm_eval.judge import judged

        assert self._drawn is not None
        if self._judged is None or self._judged[0] is not rows:
            self._judged = rows, judged(self._tree, self.leaves, self._drawn, rows, self._limit)
        return self._judged[1]


def reference(leaf: Any, doc: Mapping[str, Any]) -> str:
    """The right answer as text, where the task tells it."""
    target = leaf.doc_to_target(doc)
    if isinstance(target, int) and leaf.config.doc_to_choice is not None:
        choices = leaf.doc_to_choice(doc)
        target = choices[target] if target < len(choices) else target
    return " | ".join(map(str, target)) if isinstance(target, list) else str(target).strip()


def load_tasks(names: Sequence[str], include_path: str | None) -> dict[Any, Any]:
    """lm-eval's tree of tasks and groups, with their data.

    Raises:
        ValueError: an unknown name, with the nearest ones; data that cannot be loaded.
    """
    with silent():
        from lm_eval.tasks import TaskManager, get_task_dict  # type: ignore[import-not-found]

        index = TaskManager(include_path=include_path)
        for name in names:
            if name not in index.all_tasks:
                near = difflib.get_close_matches(name, index.all_tasks, 3)
                hint = f" Did you mean {' or '.join(near)}?" if near else ""
                raise ValueError(
                    f"tasks names {name}, but lm-eval has no such task.{hint} `lm-eval ls tasks` shows all; "
                    "task.dataset.include_path=FOLDER adds your own."
                )
        try:
            return get_task_dict(list(names), index)
        except Exception as error:
            raise ValueError(
                f"lm-eval tasks {', '.join(names)} cannot be loaded: {reason_of(error)}. Their data come from the hub "
                "on first use: start the run once with access to it, or copy the cache of a machine that has them and "
                "set HF_HOME. For a task of your own, see the paths in its yaml."
            ) from error
