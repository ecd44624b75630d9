"""Clips: some frames of a video, or of a folder of pictures, opened when somebody looks at them."""

from __future__ import annotations

import importlib.util
import re
from functools import lru_cache
from pathlib import Path

from PIL import Image

from btp.tasks.files.images import ENDINGS, PictureFile, Pictures
from btp.tasks.shown import PATH, short

VIDEOS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".MP4")
KEPT = 8  # clips whose frames stay in memory, as batches and reports look at them again


def clip_of(name: str, path: Path, frames: int, stride: int | None, key: str = "task.path") -> Pictures:
    """Frames of a video file, or of a folder that holds them as pictures in the order of their names.

    Args:
        name: Name of the sample, for messages.
        frames, stride: see `chosen`.
        key: config key that says where clips lie.

    Raises:
        ValueError: there is neither, the folder is empty, or it is a video and nothing here can read it.
    """
    if path.is_dir():
        files = frame_files(name, path, key)
        return FrameFolder(name, [PictureFile(files[i]) for i in chosen(len(files), frames, stride)], key)
    if path.is_file() and importlib.util.find_spec("av") is None:
        raise ValueError(
            f"sample {name}: {path} is a video, and reading videos needs PyAV, which is not installed. Run `pip "
            "install -r requirements-video.txt`, or save each video's frames as pictures in a folder of its name."
        )
    return Video(name, PictureFile(path), frames, stride, key)


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


def chosen(total: int, frames: int, stride: int | None) -> list[int]:
    """Which frames of `total` are looked at.

    Args:
        total: frames that there are, at least one.
        frames: Frames that are wanted; where there are fewer, some come twice.
        stride: None takes the middle of each of `frames` equal parts (uniform); a number takes every stride-th frame
            around the middle of the clip (dense), closer together where the clip is too short.

    Source: the single-view test of VideoMAE's code for Something-Something (uniform) and Kinetics (dense, stride 4).
    """
    if stride is None:
        return [min(total - 1, int((2 * i + 1) * total / (2 * frames))) for i in range(frames)]
    step = min(float(stride), (total - 1) / max(frames - 1, 1))
    first = (total - 1 - step * (frames - 1)) / 2
    return [round(first + step * i) for i in range(frames)]


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
        frames, stride: see `chosen`.
        key: config key that says where to look for it.
    """

    def __init__(self, sample: str, source: PictureFile, frames: int, stride: int | None, key: str = "task.path"):
        super().__init__(sample, [source], key)
        self.frames, self.stride = frames, stride

    def __len__(self) -> int:
        return self.frames

    def __getitem__(self, index):
        found = self._decoded()
        return list(found[index]) if isinstance(index, slice) else found[index].copy()

    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each, as the file's head says."""
        self.check()
        try:
            return [_size(str(self.sources[0].path))] * self.frames
        except Exception as error:
            raise self._broken(error) from None

    def _decoded(self) -> tuple[Image.Image, ...]:
        self.check()
        try:
            return _frames(str(self.sources[0].path), self.frames, self.stride)
        except Exception as error:
            raise self._broken(error) from None

    def _broken(self, error: Exception) -> ValueError:
        return ValueError(
            f"sample {self.sample}: the video {short(self.sources[0].name, PATH)} cannot be read: {short(error)}. "
            "Replace the file, or drop the sample."
        )


def _size(path: str) -> tuple[int, int]:
    import av  # pyright: ignore[reportMissingImports]

    with av.open(path) as container:
        stream = container.streams.video[0]
        return stream.height, stream.width


@lru_cache(maxsize=KEPT)
def _frames(path: str, frames: int, stride: int | None) -> tuple[Image.Image, ...]:
    import av  # pyright: ignore[reportMissingImports]

    with av.open(path) as container:
        total = container.streams.video[0].frames or sum(1 for _ in container.decode(video=0))
    if not total:
        raise ValueError("it holds no frame")
    wanted = chosen(total, frames, stride)
    found: dict[int, Image.Image] = {}
    with av.open(path) as container:
        for i, frame in enumerate(container.decode(video=0)):
            if i in wanted:
                found[i] = frame.to_image().convert("RGB")
            if i >= wanted[-1]:
                break
    last = max(found)  # a head may promise more frames than there are
    return tuple(found.get(i, found[last]) for i in wanted)


def _is_frame(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".")


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts frame_10 behind frame_9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
