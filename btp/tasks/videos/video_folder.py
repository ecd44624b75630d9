"""The reader of task=video_folder: any table of videos, questions and answers, see docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from btp.tasks.files.cells import absent, text_of
from btp.tasks.files.tables import Row
from btp.tasks.files.video_frames import Sampling, footage
from btp.tasks.files.vqa_folder import KEY, VQAFolder
from btp.tasks.sample import Sample

MARKS = ("<video>", "<image>")  # where tables for training mark a place; the chat template puts videos in front


@dataclass(frozen=True)
class VideoFolder:
    """Reads a table as `VQAFolder` does, with a column `video` (a path, or a list of them) beside `image`.

    A video is a file, or a folder of frames. Columns `start` and `end`, in seconds, say which part is meant;
    `duration` names a group that accuracy is reported by, too.

    Attributes:
        path: a table, or a folder with one.
        videos: folder that paths of videos are relative to; None is the table's own.
        columns: the schema's name of a column -> the table's.
        frames, fps, folder_fps: see `btp.tasks.files.video_frames.Sampling`.
    """

    path: str
    frames: int
    fps: float | None
    folder_fps: float
    videos: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    def read(self) -> list[Sample]:
        """One sample per row, in the order of the table."""
        table = VQAFolder(self.path, None, self.columns, own=("video", "videos", "start", "end", "duration"))
        sampling = Sampling(self.frames, self.fps, self.folder_fps)
        return [self._with_videos(sample, row, where, sampling) for sample, row, where in table.rows()]

    def _with_videos(self, sample: Sample, row: Row, where: Path, sampling: Sampling) -> Sample:
        found = row["videos"] if not absent(row.get("videos")) else row.get("video")
        listed: Sequence[object] = found if isinstance(found, list | tuple) else [found]
        names = [text_of(name, "video", f"{where}, sample {sample.id}") for name in listed if not absent(name)]
        folder = where.parent if self.videos is None else Path(self.videos)
        span = None
        if not absent(row.get("start")) and not absent(row.get("end")):
            span = float(row["start"]), float(row["end"])
        question = sample.question
        for mark in MARKS:
            question = question.replace(mark, "").strip()
        return replace(
            sample,
            question=question,
            clips=tuple(footage(sample.id, folder / name, sampling, KEY, span) for name in names),
            duration="" if absent(row.get("duration")) else str(row["duration"]),
        )
