"""Few-shot questions: answered examples in front of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from btp.tasks.files.tables import Row, read_rows
from btp.tasks.metric import mean
from btp.tasks.sample import Sample
from btp.tasks.scoring import exact_match, normalise
from btp.tasks.texts.task import Texts, at_least


class FewShot(Texts):
    """A table of questions, each behind examples from a table of its own or from the others.

    Args:
        path: table with question, answer and, perhaps, ability and id (.jsonl, .json, .csv, .tsv, .parquet).
        examples: table that examples are drawn from; None draws from `path`, never the question itself.
        shots: examples in front of each question, from all answers alike as far as they go.
        seed: Seed of the draw.
        question, answer: what stands in front of both.
        max_new_tokens: Tokens of an answer, of which the first line counts.

    Raises:
        ValueError: a table is broken, empty or lacks a column, or there are too few examples.
    """

    def __init__(
        self,
        path: str,
        examples: str | None = None,
        shots: int = 8,
        seed: int = 0,
        question: str = "Question: ",
        answer: str = "Answer: ",
        max_new_tokens: int = 16,
        shuffle_seed: int | None = 0,
        name: str = "few_shot",
    ):
        at_least(0, shots, "task.dataset.shots")
        rows = _rows(path, "task.path")
        shown = rows if examples is None else _rows(examples, "task.dataset.examples")
        if len(shown) - (examples is None) < shots:
            raise ValueError(
                f"task.dataset.shots is {shots}, but there are {len(shown)} examples"
                f"{', the question among them' if examples is None else ''}. Lower it, or name more examples."
            )
        samples = []
        for number, row in enumerate(rows):
            rng = np.random.default_rng([seed, number])
            others = [one for i, one in enumerate(shown) if examples is not None or i != number]
            block = "".join(
                f"{question}{one['question']}\n{answer}{one['answer']}\n\n" for one in _drawn(others, shots, rng)
            )
            samples.append(
                Sample(
                    id=str(row.get("id", number)),
                    images=(),
                    question=f"{block}{question}{row['question']}\n{answer.rstrip()}",
                    reference=str(row["answer"]),
                    ability=str(row.get("ability", "all")),
                    context=((0, len(block)),),
                    chat=False,
                    max_new_tokens=max_new_tokens,
                )
            )
        super().__init__(name, samples, shuffle_seed)

    def score(self, sample: Sample, prediction: str) -> float:
        """1 where the first line is the answer."""
        return exact_match(prediction.strip().split("\n")[0], sample.reference)

    def chance(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Share of the commonest answer of each ability."""
        said: dict[str, list[str]] = {}
        for sample in samples:
            said.setdefault(sample.ability, []).append(normalise(sample.reference))
        return {ability: mean([max(Counter(all_).values()) / len(all_)]) for ability, all_ in said.items()}


def _rows(path: str, key: str) -> list[Row]:
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{key} is {path}, but there is no such file. Set {key} to a table of questions and answers.")
    rows = read_rows(file, key)
    if not rows:
        raise ValueError(f"{key} is {path}, which holds no row. Set {key} to a table of questions and answers.")
    for number, row in enumerate(rows):
        lost = [column for column in ("question", "answer") if row.get(column) in (None, "")]
        if lost:
            raise ValueError(f"{path}, row {number} has no {lost[0]}. Every row needs question and answer.")
    return rows


def _drawn(rows: Sequence[Row], shots: int, rng: np.random.Generator) -> list[Row]:
    """As many rows, one of each answer in turn, in an order of their own."""
    by_answer: dict[str, list[Row]] = {}
    for i in rng.permutation(len(rows)):
        by_answer.setdefault(str(rows[i]["answer"]), []).append(rows[i])
    turns = max(map(len, by_answer.values()), default=0)
    listed = [group[turn] for turn in range(turns) for group in by_answer.values() if turn < len(group)]
    return [listed[i] for i in rng.permutation(shots)]
