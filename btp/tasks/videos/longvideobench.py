"""LongVideoBench (Wu et al. 2024, arXiv:2407.15754): questions that refer to a moment of a video of up to an hour."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

from btp.tasks.files.entries import Entry
from btp.tasks.files.footage import Sampling, footage
from btp.tasks.files.local import Place
from btp.tasks.files.tables import read_rows
from btp.tasks.sample import Sample
from btp.tasks.videos.options import KEY

OPTIONS = 5  # option0 to option4, of which some may be N/A
ABILITIES = ("question_category", "duration_group", "topic_category", "level")


@dataclass(frozen=True)
class LongVideoBench:
    """Reads its table, as json (candidates) or parquet (option0, ...); subtitles are not shown.

    Attributes:
        path: folder with the table and the videos' folder.
        table: below it.
        videos: folder that video_path is relative to.
        ability: column to report by: question_category | duration_group | topic_category | level.
        frames, fps, folder_fps: see `btp.tasks.files.footage.Sampling`.
    """

    path: str
    table: str
    videos: str
    ability: str
    frames: int
    fps: float | None
    folder_fps: float

    def read(self) -> list[Sample]:
        """All questions in the order of the table."""
        if self.ability not in ABILITIES:
            raise ValueError(f"task.dataset.reader.ability is {self.ability!r}. Choose from: {', '.join(ABILITIES)}.")
        layout = f"{self.table}, and {self.videos}/ with the videos that it names"
        place = Place(
            Path(self.path), "LongVideoBench", layout, "longvideobench/LongVideoBench on the Hugging Face hub"
        )
        table, sampling = place.find(self.table, "task.dataset.reader.table"), self._sampling()
        found = []
        for number, row in enumerate(read_rows(table, KEY)):
            entry = Entry(row, f"{table}, row {number + 1}")
            name = str(entry.get("id") or number)
            right = int(entry["correct_choice"])
            if right < 0:
                raise ValueError(
                    f"{entry.where} has no public answer (correct_choice {right}), and nothing can be scored without. "
                    "Set task.dataset.reader.table to the validation split."
                )
            video = place.root / self.videos / str(entry["video_path"])
            found.append(
                Sample(
                    id=name,
                    images=(),
                    clips=(footage(name, video, sampling, KEY),),
                    question=str(entry["question"]),
                    reference=ascii_uppercase[right],
                    ability=str(entry[self.ability]),
                    choices=_options(entry),
                    duration=str(entry["duration_group"]),
                )
            )
        return found

    def _sampling(self) -> Sampling:
        return Sampling(self.frames, self.fps, self.folder_fps)


def _options(entry: Entry) -> tuple[str, ...]:
    if "candidates" in entry:
        return entry.texts("candidates")
    every = [entry.get(f"option{i}") for i in range(OPTIONS)]
    return tuple(str(option) for option in every if option not in (None, "", "N/A"))
