"""The reader of task=vqa_folder: any table of pictures, questions and answers, see docs/benchmarks.md."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from string import ascii_uppercase

from btp.tasks.files.cells import absent, boxes_of, given, labels_of, text_of, texts_of
from btp.tasks.files.images import Pictures, Source
from btp.tasks.files.local import commonest
from btp.tasks.files.picture_cells import source_of
from btp.tasks.files.tables import FORMATS, Row, read_rows
from btp.tasks.sample import Sample
from btp.tasks.shown import brief, short

KEY = "task.path"
KNOWN = (
    *("id", "image", "images", "question", "answer", "answers", "choices"),
    *("ability", "category", "boxes", "labels", "group"),
)
SAME = (("image", "images"), ("answer", "answers"), ("ability", "category"))  # either column will do
OTHER_NAMES = {"image": ("img", "imgs", "pic", "picture", "pictures", "photo", "photos"), "choices": ("options",)}
PLACEHOLDER = "<image>"  # where tables for training mark a picture's place; the chat template puts pictures in front


@dataclass(frozen=True)
class VQAFolder:
    """Reads a table of questions.

    Attributes:
        path: a table, or a folder with one.
        images: folder that paths of pictures are relative to; None is the table's own.
        columns: the schema's name of a column -> the table's.
        own: Further columns, which who asks for `rows` reads.
    """

    path: str
    images: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    own: tuple[str, ...] = ()

    def read(self) -> list[Sample]:
        """One sample per row, in the order of the table.

        Warns of columns that look like one of the schema under another name, and of samples without a picture among
        others that show some.

        Raises:
            ValueError: there is no such table, a row lacks a question or answer, or a cell holds what it cannot mean.
        """
        samples = [sample for sample, _, _ in self.rows()]
        blind = [sample.id for sample in samples if not len(sample.images)]
        if 0 < len(blind) < len(samples):
            warnings.warn(
                f"{self._table()}: {len(blind)} of {len(samples)} samples show no picture, the first of them "
                f"{short(blind[0], 60)}. They are asked without one.",
                stacklevel=2,
            )
        return samples

    def rows(self) -> list[tuple[Sample, Row, Path]]:
        """The sample of each row, the row under the schema's names, and the table."""
        known = (*KNOWN, *self.own)
        unknown = [name for name in self.columns if name not in known]
        if unknown:
            raise ValueError(f"task.dataset.reader.columns holds {unknown}. Choose from: {', '.join(known)}.")
        table = self._table()
        folder = table.parent if self.images is None else Path(self.images)
        rows = read_rows(table, KEY)
        lacking = [theirs for theirs in self.columns.values() if not any(theirs in row for row in rows)]
        if lacking:
            raise ValueError(
                f"task.dataset.reader.columns names {', '.join(lacking)}, but {table} has no such column. It has: "
                f"{', '.join(short(name, 40) for name in dict.fromkeys(name for row in rows[:100] for name in row))}."
            )
        self._warn_of_names(table, rows)
        renamed = [row | {ours: row[theirs] for ours, theirs in self.columns.items() if theirs in row} for row in rows]
        return [(self._sample(table, folder, number, row), row, table) for number, row in enumerate(renamed)]

    def _warn_of_names(self, table: Path, rows: Sequence[Row]) -> None:
        read = {*KNOWN, *self.own, *self.columns.values()}
        for name in dict.fromkeys(name for row in rows for name in row if name not in read):
            meant = _meant(name)
            either = next((pair for pair in SAME if meant in pair), (str(meant),))
            if meant is None or set(either) & set(self.columns):
                continue
            if any(not absent(row.get(name)) and given(row, *either) is None for row in rows):
                warnings.warn(
                    f"{table} has a column `{short(name, 40)}`, which is not read. If it is the samples' "
                    f"`{meant}`, set task.dataset.reader.columns={{{meant}: {short(name, 40)}}}.",
                    stacklevel=3,
                )

    def _table(self) -> Path:
        path = Path(self.path)
        if path.is_file():
            return path
        if not path.is_dir():
            raise ValueError(
                f"{KEY} is {path}, but there is no such file or folder. Name a table of questions "
                f"({', '.join(FORMATS)}), or the folder that holds one; docs/benchmarks.md says how it is written."
            )
        tables = sorted(p for p in path.iterdir() if p.suffix.lower() in FORMATS)
        if len(tables) != 1:
            found = f"{len(tables)} tables: {', '.join(p.name for p in tables)}" if tables else "no table of questions"
            raise ValueError(f"{KEY} is {path}, which holds {found}. Set {KEY} to the one to read.")
        return tables[0]

    def _sample(self, table: Path, folder: Path, number: int, row: Row) -> Sample:
        name = _text(row, f"{table}, row {number + 1}", "id") or f"{number:06d}"
        where = f"{table}, sample {short(name, 60)}"
        images = _sources(row, table, folder, where)
        choices = texts_of(given(row, "choices"), "choices", where)
        options = tuple(choices.values())
        answers = _answers(row, choices, where)
        boxes = boxes_of(given(row, "boxes") or [], where)
        return Sample(
            id=name,
            images=Pictures(short(name, 60), images),
            question=_question(row, len(images), options, where),
            reference=commonest(answers),
            ability=_text(row, where, "ability", "category") or "all",
            boxes=boxes,
            labels=labels_of(given(row, "labels"), len(boxes), where),
            references=answers if len(answers) > 1 else (),
            choices=options,
            group=_text(row, where, "group"),
        )


def _meant(name: str) -> str | None:
    """The column of the schema that another name looks like."""
    plain = name.strip().lower()
    near = get_close_matches(plain, KNOWN, 1, 0.8)
    return next((ours for ours, others in OTHER_NAMES.items() if plain in others), near[0] if near else None)


def _text(row: Row, where: str, *names: str) -> str:
    value = given(row, *names)
    return "" if value is None else text_of(value, " or ".join(names), where)


def _question(row: Row, pictures: int, choices: tuple[str, ...], where: str) -> str:
    """The question without the places of its pictures, which the prompt shows in front of it."""
    question = row.get("question")
    if not absent(question) and not isinstance(question, str):
        raise ValueError(f"{where}: `question` holds {brief(question)}, which is no text. Correct it.")
    if not isinstance(question, str) or not question.replace(PLACEHOLDER, "").strip():
        raise ValueError(f"{where} has no `question`. Give it one, or name its column: task.dataset.reader.columns.")
    if any(PLACEHOLDER in choice for choice in choices):
        raise ValueError(f"{where}: a choice holds {PLACEHOLDER}, but choices are text. Leave the sample out.")
    marked = question.count(PLACEHOLDER)
    if marked not in (0, pictures):
        raise ValueError(
            f"{where}: its question holds {PLACEHOLDER} {marked} times, but it shows {pictures} picture(s). Correct "
            f"`image`, or take {PLACEHOLDER} out of the question."
        )
    return re.sub(rf"{PLACEHOLDER}\s?", "", question).strip() if marked else question


def _answers(row: Row, choices: Mapping[str, str], where: str) -> tuple[str, ...]:
    """Texts, or letters where an answer is the text of a choice or the key that a dict has it by."""
    found = given(row, "answers", "answer")
    listed = found if isinstance(found, list | tuple) else [found]
    answers = tuple(text_of(a, "answer", where) for a in listed if not absent(a))
    if not answers:
        raise ValueError(
            f"{where} has no `answer` (or `answers`), and nothing can be scored without. Give it one, or set {KEY} to "
            "a split whose answers are public."
        )
    return tuple(_letter(answer, choices, isinstance(row.get("choices"), Mapping)) for answer in answers)


def _letter(answer: str, choices: Mapping[str, str], keyed: bool) -> str:
    texts = list(choices.values())
    place = list(choices).index(answer) if keyed and answer in choices else -1
    if place < 0 and texts.count(answer) == 1:
        place = texts.index(answer)
    return ascii_uppercase[place] if 0 <= place < len(ascii_uppercase) else answer


def _sources(row: Row, table: Path, folder: Path, where: str) -> list[Source]:
    found = given(row, "images", "image")
    listed = found if isinstance(found, list | tuple) else [found]
    return [source_of(picture, table, folder, where) for picture in listed if not absent(picture)]
