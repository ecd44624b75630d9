"""Videos that a language model is asked about: some of their frames, opened only while somebody looks at them.

A folder of pictures is a video, too. Frames can be had some at a time, so that a long video is never in memory whole.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from btp.tasks.files.clip import VIDEOS, frame_files
from btp.tasks.files.images import PictureFile, Pictures
from btp.tasks.shown import PATH, brief, short


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video are shown.

    Attributes:
        frames: most frames. A video that has fewer is shown whole: no frame comes twice.
        fps: frames a second; where that would be more than `frames`, and where it is None, as many are spread evenly
            from the first to the last.
        folder_fps: frames a second of a folder of pictures, which says nothing of it.

    Raises:
        ValueError: a number is out of range; names the key.
    """

    frames: int
    fps: float | None
    folder_fps: float

    def __post_init__(self) -> None:
        if isinstance(self.frames, bool) or not isinstance(self.frames, int) or self.frames < 1:
            raise ValueError(f"task.dataset.reader.frames is {brief(self.frames)}. Write a whole number from 1 on.")
        for key, value in (("fps", self.fps), ("folder_fps", self.folder_fps)):
            if value is None and key == "fps":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"task.dataset.reader.{key} is {brief(value)}. Write a number of frames a second.")

    def chosen(self, total: int, rate: float, span: tuple[float, float] | None = None) -> list[int]:
        """Numbers of the frames that are shown.

        Args:
            total: frames that there are, at least one.
            rate: Frames a second.
            span: seconds from and to which the video is about; None for all of it.

        Source: METok's demo and lmms-eval sample one frame a second, every round(rate)-th, and a linspace of the most
        allowed where these are more.
        """
        first, end = 0, total
        if span is not None:
            first = min(int(span[0] * rate), total - 1)
            end = min(max(int(span[1] * rate) + 1, first + 1), total)
        count = end - first
        if self.fps is not None:
            found = list(range(first, end, max(round(rate / self.fps), 1)))
            if len(found) <= self.frames:
                return found
        most = min(self.frames, count)
        return [first + (i * (count - 1)) // max(most - 1, 1) for i in range(most)]


def footage(name: str, path: Path, sampling: Sampling, key: str, span: tuple[float, float] | None = None) -> Pictures:
    """A video file, or a folder that holds its frames as pictures in the order of their names.

    Args:
        name: Name of the sample, for messages.
        sampling: which frames are shown.
        key: config key that says where videos lie.
        span: as for `Sampling.chosen`.

    Raises:
        ValueError: there is neither, the folder is empty, or nothing here can read videos.
    """
    if path.is_dir():
        files = frame_files(name, path, key)
        shown = sampling.chosen(len(files), sampling.folder_fps, span)
        return FolderFootage(name, [PictureFile(files[i]) for i in shown], key)
    if path.is_file() and importlib.util.find_spec("av") is None:
        raise ValueError(
            f"sample {name}: {path} is a video, and reading videos needs PyAV, which is not installed. Run `pip "
            "install -r requirements-video.txt`, or save each video's frames as pictures in a folder of its name."
        )
    return FileFootage(name, PictureFile(path), sampling, key, span)


def video_path(folder: Path, name: str, endings: Sequence[str] = VIDEOS) -> Path:
    """The video of a name, with or without its ending: a file, or a folder of frames.

    Where there is none, the path that it would have: that of the first ending, if the name has none.
    """
    ways = [folder / name, *(folder / f"{name}{ending}" for ending in endings)]
    return next((way for way in ways if way.exists()), ways[0 if Path(name).suffix in endings else 1])


class FolderFootage(Pictures):
    """Frames in files of their own; all have the size of the first."""

    def frame_size(self) -> tuple[int, int]:
        """(height, width) of each frame."""
        return Pictures(self.sample, self.sources[:1], self.key).sizes()[0]

    def chunks(self, size: int) -> Iterator[list[Image.Image]]:
        """The frames in order, `size` at a time."""
        for first in range(0, len(self), size):
            yield self[first : first + size]


class FileFootage(Pictures):
    """Frames of a video file. It is decoded from its beginning whenever frames are looked at, and none are kept.

    Args:
        sample: id, for messages.
        source: the file.
        sampling: which frames are shown.
        key: config key that says where to look for it.
        span: as for `Sampling.chosen`.
    """

    def __init__(
        self, sample: str, source: PictureFile, sampling: Sampling, key: str, span: tuple[float, float] | None = None
    ):
        super().__init__(sample, [source], key)
        self.sampling, self.span = sampling, span
        self._known: tuple[list[int], tuple[int, int]] | None = None

    def __len__(self) -> int:
        return len(self._head()[0])

    def __getitem__(self, index):
        wanted = range(*index.indices(len(self))) if isinstance(index, slice) else [index % len(self)]
        found = {i: frame for i, frame in self._decoded() if i in wanted} if len(wanted) else {}
        return [found[i] for i in wanted] if isinstance(index, slice) else found[wanted[0]]

    def frame_size(self) -> tuple[int, int]:
        """(height, width) of each frame, as the file's head says."""
        return self._head()[1]

    def sizes(self) -> list[tuple[int, int]]:
        """The same for each frame."""
        return [self.frame_size()] * len(self)

    def chunks(self, size: int) -> Iterator[list[Image.Image]]:
        """The frames in order, `size` at a time, in one pass over the file."""
        part: list[Image.Image] = []
        for _, frame in self._decoded():
            part.append(frame)
            if len(part) == size:
                yield part
                part = []
        if part:
            yield part

    def _head(self) -> tuple[list[int], tuple[int, int]]:
        """Which frames are shown, and their size."""
        if self._known is None:
            self.check()
            try:
                import av  # pyright: ignore[reportMissingImports]

                with av.open(str(self.sources[0].path)) as container:
                    stream = container.streams.video[0]
                    rate = float(stream.average_rate or 1)
                    total = stream.frames or sum(1 for _ in container.decode(video=0))
                    size = stream.height, stream.width
                if not total:
                    raise ValueError("it holds no frame")
            except Exception as error:
                raise self._broken(error) from None
            self._known = self.sampling.chosen(total, rate, self.span), size
        return self._known

    def _decoded(self) -> Iterator[tuple[int, Image.Image]]:
        """(place, frame) in order; where the head promised more frames than there are, the last one is repeated."""
        import av  # pyright: ignore[reportMissingImports]

        wanted, _ = self._head()
        place, last = 0, None
        try:
            with av.open(str(self.sources[0].path)) as container:
                for number, frame in enumerate(container.decode(video=0)):
                    while place < len(wanted) and wanted[place] == number:
                        last = frame.to_image().convert("RGB")
                        yield place, last
                        place += 1
                    if place == len(wanted):
                        return
        except Exception as error:
            raise self._broken(error) from None
        if last is None:
            raise self._broken(ValueError("none of its frames could be decoded"))
        for rest in range(place, len(wanted)):
            yield rest, last

    def _broken(self, error: Exception) -> ValueError:
        return ValueError(
            f"sample {self.sample}: the video {short(self.sources[0].name, PATH)} cannot be read: {short(error)}. "
            "Replace the file, or drop the sample."
        )
