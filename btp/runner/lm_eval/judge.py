"""Has lm-eval itself score stored answers, as if a model had just given them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.model import LM  # type: ignore[import-not-found]
from lm_eval.evaluator import evaluate  # type: ignore[import-not-found]

from btp.runner.evaluation.task_protocol import Judgement
from btp.runner.harness.judge import Rows, judgement, responses_of
from btp.runner.harness.quiet import reason_of, silent
from btp.runner.harness.task import HarnessTask


class Replay(LM):
    """A model for lm-eval that repeats answers.

    Args:
        responses: (task, document) -> response to each of its requests, in their order.
    """

    def __init__(self, responses: Mapping[tuple[str, int], Sequence[Any]]) -> None:
        super().__init__()
        self._responses = responses

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Generated texts."""
        return [self._responses[request.task_name, int(request.doc_id)][0] for request in requests]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood, greedy) of each choice."""
        found = [self._responses[request.task_name, int(request.doc_id)][request.idx] for request in requests]
        return [(float(score), bool(greedy)) for score, greedy in found]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Never asked: such tasks are refused."""
        raise NotImplementedError


def judged(task: HarnessTask, rows: Rows) -> Judgement:
    """Have lm-eval score an arm's answers.

    Raises:
        ValueError: one of its metrics cannot sum these up.
    """
    replay = Replay(responses_of(task.drawn, rows))
    try:
        with silent():
            found = evaluate(replay, dict(task.tree), limit=task.limit, bootstrap_iters=0, log_samples=True)
    except Exception as error:
        raise ValueError(f"lm-eval cannot score these answers: {reason_of(error)}.") from error
    return judgement(task.drawn, rows, task.leaves, found)
