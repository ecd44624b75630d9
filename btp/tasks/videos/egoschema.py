"""EgoSchema (Mangalam et al. 2023, arXiv:2308.09126): what somebody does in three minutes seen through their eyes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

from btp.tasks.files.entries import Entry
from btp.tasks.files.footage import Sampling, footage, video_path
from btp.tasks.files.local import Place
from btp.tasks.files.tables import read_rows
from btp.tasks.sample import Sample
from btp.tasks.videos.options import KEY, bare_options


@dataclass(frozen=True)
class EgoSchema:
    """Reads the subset of 500 questions whose answers are public.

    Attributes:
        path: folder with the table and the videos' folder.
        table: below it, of the subset.
        videos: folder of the videos, named by video_idx.
        frames, fps, folder_fps: see `btp.tasks.files.footage.Sampling`.
    """

    path: str
    table: str
    videos: str
    frames: int
    fps: float | None
    folder_fps: float

    def read(self) -> list[Sample]:
        """All questions in the order of the table."""
        layout = f"{self.table}, and {self.videos}/VIDEO_IDX.mp4"
        place = Place(Path(self.path), "EgoSchema", layout, "lmms-lab/egoschema on the Hugging Face hub, its Subset")
        table = place.find(self.table, "task.dataset.reader.table")
        sampling = Sampling(self.frames, self.fps, self.folder_fps)
        found = []
        for number, row in enumerate(read_rows(table, KEY)):
            entry = Entry(row, f"{table}, row {number + 1}")
            name, options = str(entry.get("question_idx") or number), entry.texts("option")
            answer = entry.get("answer")
            if answer is None or not str(answer).strip().isdecimal():
                raise ValueError(
                    f"{entry.where} has no public answer, and nothing can be scored without. Set "
                    "task.dataset.reader.table to the table of the Subset, whose 500 questions have one."
                )
            video = video_path(place.root / self.videos, str(entry["video_idx"]))
            found.append(
                Sample(
                    id=name,
                    images=(),
                    clips=(footage(name, video, sampling, KEY),),
                    question=str(entry["question"]),
                    reference=ascii_uppercase[int(answer)],
                    ability="all",
                    choices=bare_options(options),
                )
            )
        return found
