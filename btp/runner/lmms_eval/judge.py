"""Has lmms-eval itself score stored answers, task by task, as if a model had just given them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lmms_eval.api.instance import GenerationResult  # type: ignore[import-not-found]
from lmms_eval.api.model import lmms  # type: ignore[import-not-found]
from lmms_eval.evaluator import evaluate  # type: ignore[import-not-found]

from btp.runner.evaluation.task_protocol import Judgement
from btp.runner.harness.judge import Rows, judgement, responses_of
from btp.runner.harness.quiet import reason_of, silent
from btp.runner.harness.task import HarnessTask
from btp.runner.lmms_eval.requests import key_of

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


def judged(task: HarnessTask, rows: Rows) -> Judgement:
    """Have lmms-eval score an arm's answers.

    Raises:
        ValueError: one of its metrics cannot sum these up.
    """
    docs = {leaf.config.task: leaf.dataset for leaf in task.leaves.values()}
    replay = Replay(responses_of(task.drawn, rows), docs)
    try:
        with silent(), _alone():
            found = evaluate(lm=replay, task_dict=task.tree, limit=task.limit, bootstrap_iters=0, log_samples=True)
    except Exception as error:
        raise ValueError(
            f"lmms-eval cannot score these answers: {reason_of(error)}. Some metrics need all documents of "
            "their task, or an even number of them: set limit=null."
        ) from error
    return judgement(task.drawn, rows, task.leaves, found)


@contextmanager
def _alone() -> Iterator[None]:
    """Score in this process alone, whatever other processes of the run are there."""
    hidden = {key: os.environ.pop(key) for key in RANKS if key in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
