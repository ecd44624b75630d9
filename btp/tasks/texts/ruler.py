"""RULER (Hsieh et al. 2024, arXiv:2404.06654): synthetic questions about texts of a length that was chosen when they
were made.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from btp.tasks.files.entries import Entry
from btp.tasks.files.local import Place
from btp.tasks.sample import Sample
from btp.tasks.shown import brief
from btp.tasks.texts.task import Texts, listed, questions
from btp.tasks.texts.text_scores import best, contained

FILE = "validation.jsonl"
LENGTHS = {"niah": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa": 32}  # tokens of an answer, by the beginning of a name
LAYOUT = f"a folder for each task, as niah_single_1, with {FILE} (index, input, outputs, length)"
SOURCE = "scripts/data/prepare.py of github.com/NVIDIA/RULER, which writes them for one length"


class Ruler(Texts):
    """Tasks of a folder that RULER's own scripts have made.

    Args:
        path: the folder of one length.
        tasks: names of folders in it; None takes all.
        chat: the model's chat template is used; False where the files hold it already.
        shuffle_seed: Seed of the order, as in `Texts`.

    Raises:
        ValueError: a file is missing, broken or empty, or a task is unknown.
    """

    def __init__(
        self,
        path: str,
        tasks: str | Sequence[str] | None = None,
        chat: bool = True,
        shuffle_seed: int | None = 0,
        name: str = "ruler",
    ):
        place = Place(Path(path), "RULER", LAYOUT, SOURCE)
        there = sorted(file.parent.name for file in place.root.glob(f"*/{FILE}"))
        named = listed(tasks)
        if not there:
            place.find(f"{(named or ['niah_single_1'])[0]}/{FILE}")  # says what must lie where
        lost = next((task for task in named if task not in there), None)
        if lost is not None:
            raise ValueError(
                f"task.dataset.tasks holds {lost!r}, but {path} has no {lost}/{FILE}. Choose from: {', '.join(there)}."
            )
        samples = []
        for task in named or there:
            length = _length(task, "task.dataset.tasks holds" if named else f"{path} holds the folder")
            rows = questions(place, f"{task}/{FILE}", task, "task.dataset.tasks")
            samples += [_sample(task, length, chat, entry) for entry in rows]
        super().__init__(name, samples, shuffle_seed)

    def score(self, sample: Sample, prediction: str) -> float:
        """Share of the references that are named; of questions with several right answers, whether any is."""
        if sample.ability.startswith("qa"):
            return best(lambda said, true: contained(said, [true]), sample, prediction)
        return contained(prediction, sample.answers)


def _length(task: str, who: str) -> int:
    found = next((length for begins, length in LENGTHS.items() if task.startswith(begins)), None)
    if found is None:
        raise ValueError(
            f"{who} {task!r}, of which nobody knows how long its answers are. RULER's tasks begin with "
            f"{', '.join(LENGTHS)}. Name those that you mean in task.dataset.tasks, or correct it."
        )
    return found


def _sample(task: str, length: int, chat: bool, entry: Entry) -> Sample:
    answers = entry.texts("outputs")
    if not answers:
        raise ValueError(f"{entry.where}: `outputs` is {brief(entry.get('outputs'))}. Make the file anew.")
    return Sample(
        id=f"{task}-{entry['index']}",
        images=(),
        question=str(entry["input"]) + str(entry.get("answer_prefix") or ""),
        reference=answers[0],
        ability=task,
        references=answers,
        chat=chat,
        max_new_tokens=length,
    )
