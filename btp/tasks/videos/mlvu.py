"""MLVU (Zhou et al. 2024, arXiv:2406.04264): long videos of many kinds, seven tasks of multiple choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from btp.tasks.files.local import Place
from btp.tasks.files.video_frames import Sampling, footage
from btp.tasks.sample import Sample
from btp.tasks.videos.options import KEY, letter

TASKS = ("1_plotQA", "2_needle", "3_ego", "4_count", "5_order", "6_anomaly_reco", "7_topic_reasoning")
GROUPS = ((180.0, "under 3 min"), (600.0, "3 to 10 min"), (1800.0, "10 to 30 min"))  # by seconds; ours, for the report


@dataclass(frozen=True)
class MLVU:
    """Reads the development set. Its two tasks of free text are judged by another model, and are left out.

    Attributes:
        path: folder with json and video.
        tasks: Tasks that are asked; null asks all seven.
        frames, fps, folder_fps: see `btp.tasks.files.video_frames.Sampling`.
    """

    path: str
    tasks: Sequence[str] | None
    frames: int
    fps: float | None
    folder_fps: float

    def read(self) -> list[Sample]:
        """All questions, task by task."""
        unknown = [task for task in self.tasks or () if task not in TASKS]
        if unknown:
            raise ValueError(f"task.dataset.reader.tasks holds {unknown}. Choose from: {', '.join(TASKS)}.")
        layout = "json/TASK.json and video/TASK/ for the tasks 1_plotQA to 7_topic_reasoning"
        place = Place(Path(self.path), "MLVU", layout, "MLVU/MVLU on the Hugging Face hub")
        sampling, found = Sampling(self.frames, self.fps, self.folder_fps), []
        for task in self.tasks or TASKS:
            for number, entry in enumerate(place.entries(f"json/{task}.json", "task.dataset.reader.tasks")):
                name, choices = f"{task}-{number:04d}", entry.texts("candidates")
                found.append(
                    Sample(
                        id=name,
                        images=(),
                        clips=(footage(name, place.root / "video" / task / str(entry["video"]), sampling, KEY),),
                        question=str(entry["question"]),
                        reference=letter(str(entry["answer"]), choices),
                        ability=str(entry["question_type"]),
                        choices=choices,
                        duration=_group(entry.get("duration")),
                    )
                )
        return found


def _group(seconds: object) -> str:
    if not isinstance(seconds, int | float):
        return ""
    return next((name for most, name in GROUPS if seconds < most), "over 30 min")
