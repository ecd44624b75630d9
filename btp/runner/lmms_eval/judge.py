"""Has lmms-eval itself score stored answers, task by task, as if a model had just given them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms
from lmms_eval.evaluator import evaluate

from btp.runner.evaluation.task_protocol import Judgement
from btp.runner.harness.document import Document
from btp.runner.harness.quiet import reason_of, silent
from btp.runner.lmms_eval.requests import key_of
from btp.tasks.scoring import exact_match

RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


class Replay(lmms):
    """A model for lmms-eval that repeats answers.

    Args:
        responses: (task, document) -> response to each of its requests, in their order.
    """

    accelerator = None  # so that none is made: this runs in one process, on no device

    def __init__(self, responses: Mapping[tuple[str, int], Sequence[Any]], docs: Mapping[str, Any]) -> None:
        super().__init__()
        self._responses = responses
        self.task_dict = dict(docs)

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """Generated texts."""
        return [self._responses[key_of(request)][0] for request in requests]

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        """(mean negative log-likelihood, greedy) of each choice."""
        return [wrapped(self._responses[key_of(request)][request.idx]) for request in requests]

    def generate_until_multi_round(self, requests: list[Any]) -> list[Any]:
        """Never asked: such tasks are refused."""
        raise NotImplementedError


def wrapped(score: Sequence[Any]) -> GenerationResult:
    """A score as the evaluator leaves it whole: lmms-eval 0.7.3 makes a string of a bare pair."""
    return GenerationResult(text=(float(score[0]), bool(score[1])))  # type: ignore[arg-type]


def judged(
    tree: Mapping[Any, Any],
    leaves: Mapping[str, Any],
    documents: Sequence[Document],
    rows: Mapping[str, Mapping[str, Any]],
    limit: int | None,
) -> Judgement:
    """Score an arm.

    Args:
        tree: Tree of tasks, as they were loaded; `leaves` are those in it.
        documents: Documents that were answered.
        rows: Rows of the answers' store, by their ids.
        limit: documents of a task.

    Raises:
        ValueError: a metric of lmms-eval cannot sum these answers up.
    """
    responses = {(document.task, document.number): rows[document.id]["responses"] for document in documents}
    replay = Replay(responses, {leaf.config.task: leaf.dataset for leaf in leaves.values()})
    try:
        with silent(), _alone():
            found = evaluate(lm=replay, task_dict=tree, limit=limit, bootstrap_iters=0, log_samples=True)
    except Exception as error:
        raise ValueError(
            f"lmms-eval cannot score these answers: {reason_of(error)}. Some metrics need all documents of "
            "their task, or an even number of them: set limit=null."
        ) from error
    return Judgement(_scores(leaves, documents, rows, found["samples"]), _metrics(found))


def _scores(
    leaves: Mapping[str, Any], documents: Sequence[Document], rows: Mapping[str, Any], samples: Mapping[str, Any]
) -> dict[str, float]:
    """Each document's score; where its task has none, whether answer and target say the same."""
    logged: dict[tuple[str, int], Mapping[str, Any]] = {}
    for name, entries in samples.items():
        for entry in entries:
            logged.setdefault((leaves[name].config.task, int(entry["doc_id"])), entry)  # of several filters the first
    by_task = {leaf.config.task: leaf for leaf in leaves.values()}
    scores = {}
    for document in documents:
        found = score_of(logged[document.task, document.number], by_task[document.task])
        said = rows[document.id]["prediction"]
        scores[document.id] = exact_match(said, document.reference) if found is None else found
    return scores


def score_of(entry: Mapping[str, Any], leaf: Any) -> float | None:
    """The first metric of a logged document that is a score in [0, 1]; None where there is none.

    A metric may be a number, or a mapping that holds one under the task's score_key, from which the task sums up.
    """
    better = leaf.higher_is_better()
    for metric in leaf.aggregation():
        value = entry.get(metric)
        if isinstance(value, Mapping):
            value = value.get(leaf.config.score_key)
        if isinstance(value, bool | int | float) and 0 <= value <= 1 and better.get(metric) is not False:
            return float(value)
    return None


def _metrics(found: Mapping[str, Any]) -> dict[str, float]:
    """Every number that lmms-eval gives for a task or a group, under both names, without their errors."""
    metrics: dict[str, float] = {}
    for task, values in {**found["results"], **found.get("groups", {})}.items():
        for key, value in values.items():
            metric, _, filtered = key.partition(",")
            if "_stderr" in metric or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            name = f"{task} {metric}" + (f" ({filtered})" if filtered not in ("", "none") else "")
            metrics[name] = float(value)
    return metrics


@contextmanager
def _alone() -> Iterator[None]:
    """Score in this process alone, whatever other processes of the run are there."""
    hidden = {key: os.environ.pop(key) for key in RANKS if key in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
