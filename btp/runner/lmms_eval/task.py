"""Tasks of lmms-eval as one task of ours."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from btp.runner.evaluation.task_protocol import Judgement
from btp.runner.harness.document import Document
from btp.runner.harness.quiet import reason_of, silent
from btp.runner.harness.settings import check_known
from btp.runner.harness.task import HarnessTask, leaves_of, target_text
from btp.runner.lmms_eval.requests import as_documents, refuse_rounds


class LMMSEvalTask(HarnessTask):
    """Documents of one or more tasks of lmms-eval: pictures and a text, chat turns, or likelihoods of choices."""

    name = "lmms_eval"

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
            tasks, include_path, num_fewshot, generation: As in any harness's task; subfolders are searched, too.
            prompts: The model whose wording is taken where a task has several; None takes its default.

        Raises:
            ValueError: as in any harness's task.
        """
        self._prompts = prompts
        super().__init__(tasks, include_path, num_fewshot, generation)

    def __len__(self) -> int:
        return sum(len(leaf.eval_docs_no_media) for leaf in self.leaves.values())

    def load(self, names: Sequence[str], include_path: str | None) -> dict[Any, Any]:
        """lmms-eval's tree of tasks and groups, with their data.

        Tasks that build their own chat turns are loaded for models with a chat template, all others for a picture and
        a text, which is the only way in which likelihoods are asked for.
        """
        with silent():
            from lmms_eval.tasks import TaskManager, get_task_dict  # type: ignore[import-not-found]

            _hush()
            index = TaskManager(include_path=include_path, model_name=self._prompts or "btp")
            tree: dict[Any, Any] = {}
            for name in names:
                check_known(self.name, [name], index.all_tasks, include_path)
                try:
                    mine = get_task_dict([name], index, "simple")
                    if all(_takes_turns(leaf) for leaf in leaves_of(mine).values()):
                        mine = get_task_dict([name], index, "chat")
                except Exception as error:
                    raise ValueError(
                        f"lmms-eval task {name} cannot be loaded: {reason_of(error)}. Its data come from the hub on "
                        "first use: start the run once with access to it (some need `hf auth login`), or copy the "
                        "cache of a machine that has them and set HF_HOME. For a task of your own, see the paths in "
                        "its yaml."
                    ) from error
                for leaf in leaves_of(mine).items():
                    _check_built(*leaf)
                tree |= mine
        return tree

    def documents(self, name: str, leaf: Any) -> list[Document]:
        """Documents of a task; what the first one cannot show is said now, and not in the middle of a run."""
        key = leaf.config.task
        docs = leaf.dataset_no_image[leaf.config.test_split if leaf.has_test_docs() else leaf.config.validation_split]
        found = as_documents(leaf.instances, {key: leaf.dataset}, lambda number: target_text(leaf, docs[number]))
        if found and found[0].show is not None:
            found[0].show()
        return found

    def judged(self, rows: Mapping[str, Mapping[str, Any]]) -> Judgement:
        """lmms-eval's own scores and sums."""
        from btp.runner.lmms_eval.judge import judged

        return judged(self, rows)


def _check_built(name: str, leaf: Any) -> None:
    """Refuse several rounds, and choices without their prompt."""
    refuse_rounds(name, leaf.OUTPUT_TYPE)
    if "acc_mutual_info" in leaf.aggregation():
        raise ValueError(
            f"lmms-eval task {name} asks for the likelihood of a choice without its prompt (metric acc_mutual_info), "
            "which lmms-eval itself cannot build. Take it out of the task's metric_list, or leave out the task."
        )


def _takes_turns(leaf: Any) -> bool:
    return leaf.OUTPUT_TYPE == "generate_until" and leaf.config.doc_to_messages is not None


def _hush() -> None:
    """Let lmms-eval say nothing but errors."""
    import lmms_eval.models  # type: ignore[import-not-found]  # noqa: F401  its import sets up the log
    from loguru import logger  # type: ignore[import-not-found]

    logger.remove()
    logger.add(sys.stderr, level="ERROR", format="lmms-eval: {message}")
