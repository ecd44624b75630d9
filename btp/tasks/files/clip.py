"""Clips: some frames of a video, or of a folder of pictures, opened when somebody looks at them."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from btp.tasks.files.images import ENDINGS, PictureFile, Pictures
from btp.tasks.shown import PATH, brief, short

VIDEOS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".MP4")
KEPT = 8  # clips whose frames stay in memory, as batches and reports look at them again


@dataclass(frozen=True)
class Views:
    """What is looked at of each clip: several views, each with an answer of its own.

    Attributes:
        frames: of a view.
        stride: see `chosen`.
        clips: runs of frames along time.
        crops: squares along the longer side of each frame; 1 leaves frames whole.

    Raises:
        ValueError: a number is no count; names the key.
    """

    frames: int
    stride: int | None
    clips: int = 1
    crops: int = 1

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            if value is None and key == "stride":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"task.dataset.reader.{key} is {brief(value)}. Write a whole number from 1 on.")

    @property
    def count(self) -> int:
        """Views of a clip."""
        return self.clips * self.crops


def clip_of(name: str, path: Path, views: Views, key: str = "task.path") -> Pictures:
    """Frames of a video file, or of a folder that holds them as pictures in the order of their names, view by view.

    Args:
        name: Name of the sample, for messages.
        views: which frames.
        key: config key that says where clips lie.

    Raises:
        ValueError: there is neither, the folder is empty, or it is a video and nothing here can read it.
    """
    if path.is_dir():
        files = frame_files(name, path, key)
        shown = chosen(len(files), views.frames, views.stride, views.clips)
        clip = FrameFolder(name, [PictureFile(files[i]) for i in shown], key)
        return clip if views.crops == 1 else Cropped(clip, views)
    if path.is_file() and importlib.util.find_spec("av") is None:
        raise ValueError(
            f"sample {name}: {path} is a video, and reading videos needs PyAV, which is not installed. Run `pip "
            "install -r requirements-video.txt`, or save each video's frames as pictures in a folder of its name."
        )
    clip = Video(name, PictureFile(path), views, key)
    return clip if views.crops == 1 else Cropped(clip, views)


def frame_files(name: str, path: Path, key: str) -> list[Path]:
    """The pictures in a folder, in the order of their names.

    Args:
        name: Of the sample, for messages.
        key: Config key that says where clips lie.

    Raises:
        ValueError: The folder holds none.
    """
    files = sorted((f for f in path.iterdir() if _is_frame(f)), key=lambda f: _natural(f.name))
    if not files:
        raise ValueError(
            f"sample {name}: {path} holds no frame ({', '.join(sorted(ENDINGS))}). Put the clip's frames there, or "
            f"correct {key}."
        )
    return files


def chosen(total: int, frames: int, stride: int | None, clips: int = 1) -> list[int]:
    """Which frames of `total` are looked at: a run of `frames`, or `clips` runs one behind the other.

    Args:
        total: frames that there are, at least one.
        frames: Frames that are wanted; where there are fewer, some come twice.
        stride: None takes the middle of each of `frames` equal parts (uniform); a number takes every stride-th frame
            around the middle of the clip (dense), closer together where the clip is too short.
        clips: runs of frames. Uniform ones take turns inside each part, dense ones lie evenly from the clip's beginning
            to its end.

    Source: the tests of VideoMAE's code for Something-Something (uniform, 2 runs) and Kinetics (dense, stride 4, 5).
    """
    if stride is None:
        parts = 2 * clips * frames
        return [(2 * (clips * i + run) + 1) * total // parts for run in range(clips) for i in range(frames)]
    step = min(float(stride), (total - 1) / max(frames - 1, 1))
    rest = total - 1 - step * (frames - 1)
    firsts = [rest * run / (clips - 1) for run in range(clips)] if clips > 1 else [rest / 2]
    return [round(first + step * i) for first in firsts for i in range(frames)]


class FrameFolder(Pictures):
    """Frames in files of their own; all have the size of the first."""

    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each."""
        return Pictures(self.sample, self.sources[:1], self.key).sizes() * len(self)


class Video(Pictures):
    """Frames of a video file; all are decoded when one is looked at.

    Args:
        sample: id, for messages.
        source: the file.
        views: which frames; they come whole.
        key: config key that says where to look for it.
    """

    def __init__(self, sample: str, source: PictureFile, views: Views, key: str = "task.path"):
        super().__init__(sample, [source], key)
        self.views = views

    def __len__(self) -> int:
        return self.views.clips * self.views.frames

    def __getitem__(self, index):
        found = self._decoded()
        return list(found[index]) if isinstance(index, slice) else found[index].copy()

    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each, as the file's head says."""
        self.check()
        try:
            return [_size(str(self.sources[0].path))] * len(self)
        except Exception as error:
            raise self._broken(error) from None

    def _decoded(self) -> tuple[Image.Image, ...]:
        self.check()
        try:
            return _frames(str(self.sources[0].path), self.views.frames, self.views.stride, self.views.clips)
        except Exception as error:
            raise self._broken(error) from None

    def _broken(self, error: Exception) -> ValueError:
        return ValueError(
            f"sample {self.sample}: the video {short(self.sources[0].name, PATH)} cannot be read: {short(error)}. "
            "Replace the file, or drop the sample."
        )


class Cropped(Pictures):
    """The frames of a clip, each run of them once for every square along the longer side.

    Args:
        clip: whole frames, all of one size.
        views: how many squares.
    """

    def __init__(self, clip: Pictures, views: Views):
        super().__init__(clip.sample, clip.sources, clip.key)
        self.clip, self.views = clip, views

    def __len__(self) -> int:
        return len(self.clip) * self.views.crops

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        view, frame = divmod(range(len(self))[index], self.views.frames)
        run, square = divmod(view, self.views.crops)
        picture = self.clip[run * self.views.frames + frame]
        side = min(picture.size)
        left, top = (round((n - side) * square / (self.views.crops - 1)) for n in picture.size)
        return picture.crop((left, top, left + side, top + side))

    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each."""
        side = min(self.clip.sizes()[0])
        return [(side, side)] * len(self)


def _size(path: str) -> tuple[int, int]:
    import av  # pyright: ignore[reportMissingImports]

    with av.open(path) as container:
        stream = container.streams.video[0]
        return stream.height, stream.width


@lru_cache(maxsize=KEPT)
def _frames(path: str, frames: int, stride: int | None, clips: int) -> tuple[Image.Image, ...]:
    import av  # pyright: ignore[reportMissingImports]

    with av.open(path) as container:
        total = container.streams.video[0].frames or sum(1 for _ in container.decode(video=0))
    if not total:
        raise ValueError("it holds no frame")
    wanted = chosen(total, frames, stride, clips)
    found: dict[int, Image.Image] = {}
    with av.open(path) as container:
        for i, frame in enumerate(container.decode(video=0)):
            if i in wanted:
                found[i] = frame.to_image().convert("RGB")
            if i >= max(wanted):
                break
    last = max(found)  # a head may promise more frames than there are
    return tuple(found.get(i, found[last]) for i in wanted)


def _is_frame(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".")


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts frame_10 behind frame_9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
