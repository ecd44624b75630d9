"""Clips with classes: lists of `path label` lines, folders per class, and Something-Something V2."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from btp.tasks.classes.picture_folder import subfolders
from btp.tasks.classes.task import Named, in_order
from btp.tasks.files.clip import VIDEOS, Views, clip_of
from btp.tasks.files.local import Place, lines_of, read_text
from btp.tasks.shown import brief

KEY = "task.path"


class Clips:
    """Reads a list of clips: on each line a path and a class, a blank or a comma between them, as for VideoMAE's code.

    A class is its number from 0 on, or its name. Paths are of videos, or of folders with frames.

    Args:
        path: folder with the list.
        listed: the list's file in it.
        videos: folder of the clips below it; None where paths begin there.
        frames: Frames of a view.
        stride, clips, crops: see `btp.tasks.files.clip.Views`.
    """

    def __init__(
        self,
        path: str,
        listed: str,
        videos: str | None,
        frames: int,
        stride: int | None,
        clips: int = 1,
        crops: int = 1,
    ):
        self.looked = Views(frames, stride, clips, crops)
        layout = f"{listed} with a line `path label` for each clip, and the clips in {videos or 'the same folder'}"
        self.place = Place(Path(path), "A task of clips", layout, "your own lists, or those of VideoMAE's repository")
        self.listed, self.videos = listed, videos
        self.classes: Sequence[str] = ()

    def read(self) -> list[Named]:
        """All clips in the order of the list."""
        file = self.place.find(self.listed, "task.dataset.reader.listed")
        root = self.place.root if self.videos is None else self.place.find(self.videos, "task.dataset.reader.videos")
        found = []
        for number, line in enumerate(lines_of(read_text(file, KEY)), 1):
            if not line.strip():
                continue
            name, label = _parts(line, f"{file}, line {number}")
            path = Path(name) if Path(name).is_absolute() else root / name
            where = f"{file}, line {number}"
            if not path.exists():
                raise ValueError(f"{where}: there is no {path}. Put the clip there, or correct {KEY}.")
            found.append(Named(name, clip_of(name, path, self.looked, KEY), label, where))
        self.classes = _known([one.label for one in found])
        return found


class ClassFolders:
    """Reads a folder of clips for each class, as Kinetics lies in folders; classes are the folders' names, sorted.

    Args:
        path: folder with one of the split in it.
        split: Split that folder.
        frames, stride, clips, crops: as for `Clips`.
    """

    def __init__(self, path: str, split: str, frames: int, stride: int | None, clips: int = 1, crops: int = 1):
        self.looked = Views(frames, stride, clips, crops)
        self.root = Path(path) / split
        self.folders = subfolders(Path(path), "a folder of clips for each class", split)
        self.classes: Sequence[str] = tuple(folder.name for folder in self.folders)

    def read(self) -> list[Named]:
        """All clips, by class and name."""
        found = []
        for folder in self.folders:
            clips = sorted(p for p in folder.iterdir() if p.is_dir() or p.suffix.lower() in VIDEOS)
            if not clips:
                raise ValueError(
                    f"{folder} holds no clip ({', '.join(VIDEOS[:-1])}, or folders of frames), but each folder in it "
                    "is a class. Put its clips there, or take it away."
                )
            for clip in clips:
                name = clip.relative_to(self.root).as_posix()
                found.append(Named(name, clip_of(name, clip, self.looked, KEY), folder.name, str(clip)))
        return found


class SomethingSomething:
    """Reads Something-Something V2 (Goyal et al. 2017, arXiv:1706.04261).

    Args:
        path: folder with labels.json, the split's file and the clips.
        split: name of its file, without .json: validation | train.
        videos: folder of the clips: ID.webm, or a folder ID of frames.
        frames, stride, clips, crops: as for `Clips`.
    """

    def __init__(
        self, path: str, split: str, videos: str, frames: int, stride: int | None, clips: int = 1, crops: int = 1
    ):
        self.looked = Views(frames, stride, clips, crops)
        layout = f"labels.json, {split}.json with id and template of each clip, and {videos}/ID.webm"
        source = "20bn-something-something-v2 of developer.qualcomm.com"
        self.place = Place(Path(path), "Something-Something V2", layout, source)
        self.split, self.videos = split, videos
        self.classes: Sequence[str] = ()

    def read(self) -> list[Named]:
        """All clips in the order of the split's file."""
        self.classes = in_order(self.place.json("labels.json"), str(self.place.root / "labels.json"))
        root = self.place.find(self.videos, "task.dataset.reader.videos")
        found = []
        for entry in self.place.entries(f"{self.split}.json", "task.dataset.reader.split"):
            name, label = str(entry["id"]), re.sub(r"[\[\]]", "", str(entry["template"]))
            ways = [root / name, *(root / f"{name}{ending}" for ending in (".webm", *VIDEOS))]
            path = next((way for way in ways if way.exists()), None)
            if path is None:
                raise ValueError(
                    f"{entry.where}: there is neither {root / name}.webm nor a folder {root / name}. Put the clip "
                    f"there, or correct {KEY}."
                )
            found.append(Named(name, clip_of(name, path, self.looked, KEY), label, entry.where))
        return found


def _parts(line: str, where: str) -> tuple[str, str]:
    parts = re.split(r",|\s+", line.strip())
    if len(parts) < 2 or not parts[0] or not parts[-1]:
        raise ValueError(f"{where} is {brief(line.strip())}, not a path, a blank and a class. Correct it.")
    name = line.strip()[: -len(parts[-1])].rstrip(", \t")
    return name, parts[-1]


def _known(labels: Sequence[str]) -> tuple[str, ...]:
    """Classes in the order of a model's outputs: numbers up to the highest, or names, sorted."""
    if all(label.isdecimal() for label in labels):
        return tuple(str(i) for i in range(max(map(int, labels), default=-1) + 1))
    return tuple(sorted(set(labels)))
