"""The reader of task=vqa_folder: any table of pictures, questions and answers, see docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from btp.tasks.local import commonest
from btp.tasks.pictures import PictureCell, PictureFile, Pictures, Source
from btp.tasks.sample import Box, Sample
from btp.tasks.tables import FORMATS, Row, read_rows

KEY = "task.path"
KNOWN = (
    *("id", "image", "images", "question", "answer", "answers", "choices"),
    *("ability", "category", "boxes", "labels", "group"),
)


@dataclass(frozen=True)
class VQAFolder:
    """Reads a table of questions.

    Attributes:
        path: a table, or a folder with one.
        images: folder that paths of pictures are relative to; None is the table's own.
        columns: the schema's name of a column -> the table's.
    """

    path: str
    images: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    def read(self) -> list[Sample]:
        """One sample per row, in the order of the table.

        Raises:
            ValueError: there is no such table, or a row lacks a question or answer.
        """
        unknown = [name for name in self.columns if name not in KNOWN]
        if unknown:
            raise ValueError(f"task.dataset.reader.columns holds {unknown}. Choose from: {', '.join(KNOWN)}.")
        table = self._table()
        folder = table.parent if self.images is None else Path(self.images)
        rows = read_rows(table, KEY)
        lacking = [theirs for theirs in self.columns.values() if not any(theirs in row for row in rows)]
        if lacking:
            raise ValueError(
                f"task.dataset.reader.columns names {', '.join(lacking)}, but {table} has no such column. It has: "
                f"{', '.join(dict.fromkeys(name for row in rows[:100] for name in row))}."
            )
        return [self._sample(table, folder, number, row) for number, row in enumerate(rows)]

    def _table(self) -> Path:
        path = Path(self.path)
        if path.is_file():
            return path
        if not path.is_dir():
            raise ValueError(
                f"{KEY} is {path}, but there is no such file or folder. Name a table of questions "
                f"({', '.join(FORMATS)}), or the folder that holds one; docs/benchmarks.md says how it is written."
            )
        tables = sorted(p for p in path.iterdir() if p.suffix in FORMATS)
        if len(tables) != 1:
            found = f"{len(tables)} tables: {', '.join(p.name for p in tables)}" if tables else "no table of questions"
            raise ValueError(f"{KEY} is {path}, which holds {found}. Set {KEY} to the one to read.")
        return tables[0]

    def _sample(self, table: Path, folder: Path, number: int, row: Row) -> Sample:
        row = row | {ours: row[theirs] for ours, theirs in self.columns.items() if theirs in row}
        name = str(row.get("id", f"{number:06d}"))
        where = f"{table}, sample {name}"
        question = row.get("question")
        if not isinstance(question, str) or not question.strip():
            raise ValueError(
                f"{where} has no `question`. Give it one, or name its column: task.dataset.reader.columns."
            )
        choices = tuple(str(choice) for choice in row.get("choices") or ())
        answers = _answers(row, choices, where)
        return Sample(
            id=name,
            images=Pictures(name, _sources(row, folder, where)),
            question=question,
            reference=commonest(answers),
            ability=str(row.get("ability", row.get("category", "all"))),
            boxes=_boxes(row.get("boxes") or (), where),
            labels=tuple(str(label) for label in row.get("labels") or ()),
            references=answers if len(answers) > 1 else (),
            choices=choices,
            group=str(row.get("group", "")),
        )


def _answers(row: Row, choices: tuple[str, ...], where: str) -> tuple[str, ...]:
    given = row.get("answers", row.get("answer"))
    answers = tuple(_text(a) for a in (given if isinstance(given, list | tuple) else [given]) if a is not None)
    if not any(a.strip() for a in answers):
        raise ValueError(
            f"{where} has no `answer` (or `answers`), and nothing can be scored without. Give it one, or set {KEY} to "
            "a split whose answers are public."
        )
    return tuple(ascii_uppercase[choices.index(a)] if choices.count(a) == 1 else a for a in answers if a.strip())


def _text(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _sources(row: Row, folder: Path, where: str) -> list[Source]:
    given = row.get("images", row.get("image"))
    listed = given if isinstance(given, list | tuple) else [] if given is None else [given]
    sources: list[Source] = []
    for picture in listed:
        if isinstance(picture, PictureCell):
            sources.append(picture)
        elif isinstance(picture, str):
            sources.append(PictureFile(folder / picture))
        else:
            raise ValueError(
                f"{where}: its picture is {str(picture)[:60]!r}, but a picture is a path, or bytes in a parquet file. "
                "Correct `image`."
            )
    return sources


def _boxes(given: Any, where: str) -> tuple[Box, ...]:
    boxes = tuple(tuple(float(v) for v in box) for box in given)
    for box in boxes:
        if len(box) != 4 or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
            raise ValueError(
                f"{where}: the box {list(box)} is not [x0, y0, x1, y1] in shares of the picture's sides. Correct it."
            )
    return boxes
