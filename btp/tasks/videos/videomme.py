"""Video-MME (Fu et al. 2024, arXiv:2405.21075): three questions about each of 900 videos of 11 seconds to an hour."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from btp.tasks.files.entries import Entry
from btp.tasks.files.footage import Sampling, footage, video_path
from btp.tasks.files.local import Place
from btp.tasks.files.tables import read_rows
from btp.tasks.sample import Sample
from btp.tasks.videos.options import KEY, bare_options

ABILITIES = ("task_type", "duration", "domain", "sub_category")


@dataclass(frozen=True)
class VideoMME:
    """Reads its table; subtitles are not shown.

    Attributes:
        path: folder with the table and the videos' folder.
        table: below it.
        videos: folder of the videos, named by their videoID.
        ability: column to report by: task_type | duration | domain | sub_category.
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
        layout = f"{self.table}, and {self.videos}/VIDEOID.mp4 (or .mkv, or folders of frames)"
        place = Place(Path(self.path), "Video-MME", layout, "lmms-lab/Video-MME on the Hugging Face hub")
        table, sampling = place.find(self.table, "task.dataset.reader.table"), self._sampling()
        found = []
        for number, row in enumerate(read_rows(table, KEY)):
            entry = Entry(row, f"{table}, row {number + 1}")
            name, options = str(entry.get("question_id") or number), entry.texts("options")
            video = video_path(place.root / self.videos, str(entry["videoID"]))
            found.append(
                Sample(
                    id=name,
                    images=(),
                    clips=(footage(name, video, sampling, KEY),),
                    question=str(entry["question"]),
                    reference=str(entry["answer"]).strip(),
                    ability=str(entry[self.ability]),
                    choices=bare_options(options),
                    duration=str(entry["duration"]),
                )
            )
        return found

    def _sampling(self) -> Sampling:
        return Sampling(self.frames, self.fps, self.folder_fps)
