"""Video benchmarks whose questions stand in one table beside a folder of videos: one reader, told apart by data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import ClassVar

from btp.tasks.files.entries import Entry
from btp.tasks.files.local import Place
from btp.tasks.files.tables import read_rows
from btp.tasks.files.video_frames import Sampling, footage, video_path
from btp.tasks.sample import Sample
from btp.tasks.videos.options import KEY

ONE = "all"  # the ability of a table that tells none apart


@dataclass(frozen=True)
class Layout:
    """What a benchmark's table looks like.

    Attributes:
        title: Title of the benchmark.
        videos: Videos as they lie in their folder, for messages.
        source: Where a copy comes from.
        identity: Column of a question's id; its number where a row has none.
        video: Column of a video's name, with or without its ending.
        choices: Options of a row.
        answer: The right option's letter of a row.
        abilities: Columns to report by; none where all questions are of one kind.
        duration: Column of a group by length; none where there is none.
    """

    title: str
    videos: str
    source: str
    identity: str
    video: str
    choices: Callable[[Entry], tuple[str, ...]]
    answer: Callable[[Entry], str]
    abilities: tuple[str, ...] = ()
    duration: str | None = None


@dataclass(frozen=True)
class VideoTable:
    """Reads one table of questions; subtitles are not shown.

    Attributes:
        path: Folder with the table and the videos' folder.
        table: Path of the table below it.
        videos: Folder of the videos below it.
        frames, fps, folder_fps: See `btp.tasks.files.video_frames.Sampling`.
        ability: Column to report by, one of the layout's.
    """

    path: str
    table: str
    videos: str
    frames: int
    fps: float | None
    folder_fps: float
    ability: str = ONE

    layout: ClassVar[Layout]

    def read(self) -> list[Sample]:
        """All questions in the order of the table."""
        layout, known = self.layout, self.layout.abilities or (ONE,)
        if self.ability not in known:
            raise ValueError(f"task.dataset.reader.ability is {self.ability!r}. Choose from: {', '.join(known)}.")
        files = f"{self.table}, and {self.videos}/{layout.videos}"
        place = Place(Path(self.path), layout.title, files, f"{layout.source} on the Hugging Face hub")
        table = place.find(self.table, "task.dataset.reader.table")
        sampling = Sampling(self.frames, self.fps, self.folder_fps)
        found = []
        for number, row in enumerate(read_rows(table, KEY)):
            entry = Entry(row, f"{table}, row {number + 1}")
            name, answer = str(entry.get(layout.identity) or number), layout.answer(entry)
            video = video_path(place.root / self.videos, str(entry[layout.video]))
            found.append(
                Sample(
                    id=name,
                    images=(),
                    clips=(footage(name, video, sampling, KEY),),
                    question=str(entry["question"]),
                    reference=answer,
                    ability=self.ability if self.ability == ONE else str(entry[self.ability]),
                    choices=layout.choices(entry),
                    duration=str(entry[layout.duration]) if layout.duration else "",
                )
            )
        return found


def numbered_answer(column: str, public: str) -> Callable[[Entry], str]:
    """Reads the right option's letter where a table has its number, counted from 0.

    Args:
        column: Column of the number; negative or empty where the answer is not public.
        public: Table whose answers are public, for the message.
    """

    def read(entry: Entry) -> str:
        found = entry.get(column)
        try:
            number = int(found)  # type: ignore[arg-type]  # None is refused below
        except (TypeError, ValueError):
            number = -1
        if number < 0:
            raise ValueError(
                f"{entry.where} has no public answer ({column} {found}), and nothing can be scored without. "
                f"Set task.dataset.reader.table to {public}."
            )
        return ascii_uppercase[number]

    return read
