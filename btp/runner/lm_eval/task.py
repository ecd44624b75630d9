"""Tasks of EleutherAI's lm-eval as one task of ours.

A continuation is scored token by token behind the prompt, as if it had been generated: a likelihood taken in one
forward has no decode step, and a method that evicts from the cache would do nothing in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from btp.models.text_processor import PLAIN
from btp.runner.evaluation.task_protocol import Judgement
from btp.runner.harness.document import Document, Shown
from btp.runner.harness.quiet import reason_of, silent
from btp.runner.harness.settings import check_known
from btp.runner.harness.task import HarnessTask, by_document, check_greedy, document_id, endings, target_text
from btp.runner.lm_eval.respond import Respond
from btp.tasks.sample import Sample

LONGEST = 256  # new tokens where a task does not say, as in lm-eval's own models
KINDS = ("loglikelihood", "generate_until")


class LMEvalTask(HarnessTask):
    """Documents of one or more tasks of lm-eval: generated texts, or likelihoods of choices."""

    name = "lm_eval"
    evaluate = Respond

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
            tasks, include_path, num_fewshot, generation: As in any harness's task.
            chat: Put each prompt into a turn of the model's chat template; otherwise it is the prompt as it is.

        Raises:
            ValueError: as in any harness's task.
        """
        self._role = "user" if chat else PLAIN
        super().__init__(tasks, include_path, num_fewshot, generation)

    def __len__(self) -> int:
        return sum(len(list(leaf.eval_docs)) for leaf in self.leaves.values())

    def load(self, names: Sequence[str], include_path: str | None) -> dict[Any, Any]:
        """lm-eval's tree of tasks and groups, with their data."""
        with silent():
            from lm_eval.tasks import TaskManager, get_task_dict  # type: ignore[import-not-found]

            index = TaskManager(include_path=include_path)
            check_known(self.name, names, index.all_tasks, include_path)
            try:
                return get_task_dict(list(names), index)
            except Exception as error:
                raise ValueError(
                    f"lm-eval tasks {', '.join(names)} cannot be loaded: {reason_of(error)}. Their data come from the "
                    "hub on first use: start the run once with access to it, or copy the cache of a machine that has "
                    "them and set HF_HOME. For a task of your own, see the paths in its yaml."
                ) from error

    def documents(self, name: str, leaf: Any) -> list[Document]:
        """Documents of a task: one prompt each, answered greedily or with the likelihoods of its continuations."""
        together = by_document(leaf.instances, lambda request: int(request.doc_id))
        return [self._document(name, leaf, number, asked) for number, asked in together.items()]

    def _document(self, name: str, leaf: Any, number: int, requests: Sequence[Any]) -> Document:
        first = requests[0]
        if first.request_type not in KINDS or len({request.args[0] for request in requests}) > 1:
            raise ValueError(
                f"lm-eval task {name} asks for {first.request_type} of {len(requests)} prompts a document, but arms "
                f"are compared by one prompt and its continuations, or by greedy answers. Leave {name} out of tasks."
            )
        choices = first.request_type == "loglikelihood"
        settings: Mapping[str, Any] = {} if choices else first.args[1]
        check_greedy(self.name, name, settings)
        turn = {"role": self._role, "content": [{"type": "text", "text": first.args[0]}]}
        return Document(
            id=document_id(name, number),
            images=(),
            question=first.args[0],
            reference=target_text(leaf, first.doc),
            ability=name,
            show=partial(Shown, (turn,), ()),
            task=name,
            number=number,
            continuations=tuple(request.args[1] for request in requests) if choices else (),
            max_new_tokens=int(settings.get("max_gen_toks") or LONGEST),
            until=endings(settings),
            chat=self._role != PLAIN,
        )

    def chance(self, samples: Sequence[Sample]) -> dict[str, float]:
        """One of the choices, where all are scored."""
        counts: dict[str, list[float]] = {}
        for sample in samples:
            choices = getattr(sample, "continuations", ())
            counts.setdefault(sample.ability, []).append(1 / len(choices) if len(choices) > 1 else 0.0)
        return {ability: sum(each) / len(each) for ability, each in counts.items() if all(each)}

    def judged(self, rows: Mapping[str, Mapping[str, Any]]) -> Judgement:
        """lm-eval's own scores and sums."""
        from btp.runner.lm_eval.judge import judged

        return judged(self, rows)
