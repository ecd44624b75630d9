"""Has lm-eval itself score stored answers, as if a model had just given them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.model import LM  # type: ignore[import-not-found]
from lm_eval.evaluator import evaluate  # type: ignore[import-not-found]

from btp.runner.evaluation.task_protocol import Judgement
from btp.runner.harness.document import Document
from btp.runner.harness.quiet import reason_of, silent
from btp.tasks.scoring import exact_match


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


def judged(
    tree: Mapping[Any, Any],
    leaves: Mapping[str, Any],
    documents: Sequence[Document],
    rows: Mapping[str, Mapping[str, Any]],
    limit: int | None,
) -> Judgement:
    """Score an arm.

    Args:
        tree: of tasks, as they were loaded; `leaves` are those in it.
        documents: that were answered.
        rows: of the answers' store, by their ids.
        limit: documents of a task.

    Raises:
        ValueError: a metric of lm-eval cannot sum these answers up.
    """
    responses = {(document.task, document.number): rows[document.id]["responses"] for document in documents}
    try:
        with silent():
            found = evaluate(Replay(responses), dict(tree), limit=limit, bootstrap_iters=0, log_samples=True)
    except Exception as error:
        raise ValueError(f"lm-eval cannot score these answers: {reason_of(error)}.") from error
    scores = {}
    for document in documents:
        entry = next(e for e in found["samples"][document.task] if int(e["doc_id"]) == document.number)
        own = score_of(entry, leaves[document.task])
        said = rows[document.id]["prediction"]
        scores[document.id] = exact_match(said, document.reference) if own is None else own
    return Judgement(scores, metrics_of(found))


def score_of(entry: Mapping[str, Any], leaf: Any) -> float | None:
    """The first metric of a logged document that is a score in [0, 1]; None where there is none."""
    better = leaf.higher_is_better()
    for metric in leaf.aggregation():
        value = entry.get(metric)
        if isinstance(value, bool | int | float) and 0 <= value <= 1 and better.get(metric) is not False:
            return float(value)
    return None


def metrics_of(found: Mapping[str, Any]) -> dict[str, float]:
    """Every number that lm-eval gives for a task or a group, under both names, without their errors."""
    metrics: dict[str, float] = {}
    for task, values in {**found["results"], **(found.get("groups") or {})}.items():
        for key, value in values.items():
            metric, _, filtered = key.partition(",")
            if "_stderr" in metric or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if metric in ("sample_len", "sample_count"):
                continue
            metrics[f"{task} {metric}" + (f" ({filtered})" if filtered not in ("", "none") else "")] = float(value)
    return metrics
