"""MMBench (Liu et al. 2024, arXiv:2307.06281): multiple choice by skill, pictures inside the table."""

import base64
import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

from btp.tasks.files.images import Pictures
from btp.tasks.files.local import Place
from btp.tasks.sample import Sample
from btp.tasks.shown import brief

LETTERS = "ABCD"
ROUND = 1_000_000  # copies of a question with its options in another order have indices this much higher
SHORT = 64  # letters; a shorter picture is the index of the row that holds it


@dataclass(frozen=True)
class PictureRow:
    """A picture as base64 in one row of the table, which begins at byte `start`."""

    path: Path
    start: int
    columns: tuple[str, ...]

    @property
    def name(self) -> str:
        """File and place."""
        return f"{self.path}, byte {self.start}"

    def open(self) -> IO[bytes]:
        """Read that row alone."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            row = next(csv.reader((line.decode() for line in file), delimiter="\t"))
        return BytesIO(base64.b64decode(row[self.columns.index("image")]))


@dataclass(frozen=True)
class MMBench:
    """Reads the table of one split.

    Attributes:
        path: folder of the table.
        table: such as mmbench_dev_20230712.tsv.
        ability: column to report by: category (20 skills) or l2-category.
    """

    path: str
    table: str
    ability: str

    def read(self) -> list[Sample]:
        """One sample per row; those of one question, in other orders of its options, are a group."""
        place = Place(Path(self.path), "MMBench", self.table, "the download links of github.com/open-compass/MMBench")
        path = place.find(self.table, "task.dataset.reader.table")
        found = list(_rows(path))
        if found and self.ability not in found[0][1]:
            raise ValueError(
                f"task.dataset.reader.ability is {self.ability!r}, but {path} has no such column. Choose from: "
                f"{', '.join(found[0][1])}."
            )
        pictures = {row["index"]: source for source, row, inside in found if inside}
        samples = []
        for source, row, _ in found:
            hint = f"{row['hint']}\n" if row.get("hint", "").strip() not in ("", "nan") else ""
            source = pictures.get(row["image"], source)
            samples.append(
                Sample(
                    id=row["index"],
                    images=Pictures(row["index"], [source]),
                    question=hint + row["question"],
                    reference=row.get("answer", "").strip(),
                    ability=row[self.ability],
                    choices=tuple(row[c] for c in LETTERS if row.get(c, "").strip() not in ("", "nan")),
                    group=str(int(row["index"]) % ROUND),
                )
            )
        return samples


def _rows(path: Path) -> Iterator[tuple[PictureRow, dict[str, str], bool]]:
    """Every row with the place of its picture, and whether the picture is in it; a long picture is not kept."""
    csv.field_size_limit(sys.maxsize)
    start = ahead = 0
    with path.open("rb") as file:

        def lines() -> Iterator[str]:
            nonlocal ahead
            for line in file:
                ahead += len(line)
                yield line.decode("utf-8-sig" if ahead == len(line) else "utf-8")

        table = csv.reader(lines(), delimiter="\t")
        columns = tuple(next(table, ()))
        missing = [name for name in ("index", "question", "image", "A", "B") if name not in columns]
        if missing:
            raise ValueError(f"{path} lacks the columns {', '.join(missing)}. Get it anew, or correct task.path.")
        start = ahead
        for cells in table:
            row = dict(zip(columns, cells, strict=False))
            if len(cells) < len(columns) or not row["index"].isdecimal():
                raise ValueError(
                    f"{path}, byte {start}: a row has {len(cells)} of {len(columns)} cells, and begins with "
                    f"{brief(cells[:1])}, where `index` is a whole number. Get it anew, or correct task.path."
                )
            inside = len(row["image"]) > SHORT
            yield PictureRow(path, start, columns), row | ({"image": ""} if inside else {}), inside
            start = ahead
