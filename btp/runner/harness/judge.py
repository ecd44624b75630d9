"""Scores and metrics of an arm, read off what a harness logged about its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from btp.runner.evaluation.task_protocol import Judgement
from btp.runner.harness.document import Document
from btp.tasks.scoring import exact_match

Rows = Mapping[str, Mapping[str, Any]]  # rows of the answers' store, by sample id
COUNTED = ("sample_len", "sample_count")  # what lm-eval counts among its metrics


def responses_of(documents: Sequence[Document], rows: Rows) -> dict[tuple[str, int], Sequence[Any]]:
    """(task, number of the document) -> response to each of its requests, in their order."""
    return {(document.task, document.number): rows[document.id]["responses"] for document in documents}


def judgement(
    documents: Sequence[Document], rows: Rows, leaves: Mapping[str, Any], found: Mapping[str, Any]
) -> Judgement:
    """Each document's score and all metrics; where a task scores no document, whether answer and target say the same.

    Args:
        documents: Documents that were answered.
        rows: Their answers.
        leaves: Tasks by the names under which `found` logs them.
        found: Results of a harness, with its samples; of several filters the first one counts.
    """
    logged: dict[tuple[str, int], tuple[Any, Mapping[str, Any]]] = {}
    for name, entries in found["samples"].items():
        for entry in entries:
            logged.setdefault((leaves[name].config.task, int(entry["doc_id"])), (leaves[name], entry))
    scores = {}
    for document in documents:
        score = score_of(*logged[document.task, document.number])
        said = rows[document.id]["prediction"]
        scores[document.id] = exact_match(said, document.reference) if score is None else score
    return Judgement(scores, metrics_of(found))


def score_of(leaf: Any, entry: Mapping[str, Any]) -> float | None:
    """The first metric of a logged document that is a score in [0, 1]; None where there is none.

    A metric may be a number, or a mapping that holds one under the task's score_key, from which the task sums up.
    """
    better = leaf.higher_is_better()
    for metric in leaf.aggregation():
        value = entry.get(metric)
        if isinstance(value, Mapping):
            value = value.get(getattr(leaf.config, "score_key", None))
        if isinstance(value, bool | int | float) and 0 <= value <= 1 and better.get(metric) is not False:
            return float(value)
    return None


def metrics_of(found: Mapping[str, Any]) -> dict[str, float]:
    """Every number that a harness gives for a task or a group, under both names, without their errors."""
    metrics: dict[str, float] = {}
    for task, values in {**found["results"], **(found.get("groups") or {})}.items():
        for key, value in values.items():
            metric, _, filtered = key.partition(",")
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and "_stderr" not in metric and metric not in COUNTED:
                metrics[f"{task} {metric}" + (f" ({filtered})" if filtered not in ("", "none") else "")] = float(value)
    return metrics
