"""Pictures that are opened when they are looked at, so that a list of thousands of samples holds none in memory."""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from hashlib import sha256
from io import BytesIO
from os.path import isfile
from pathlib import Path
from typing import IO, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from btp.tasks.files.decode_image import FORMATS, as_seen, open_picture, size_seen
from btp.tasks.shown import PATH, short

EDGE = 1 << 16  # bytes at each end of a file that tell it from others of its size
ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
BROKEN = (UnidentifiedImageError, OSError, EOFError, SyntaxError, TypeError, ValueError, LookupError, struct.error)
BROKEN += (pa.ArrowException,)


class Source(Protocol):
    """Where the bytes of one picture file are."""

    @property
    def name(self) -> str:
        """For messages, and what tells it from other pictures of the set."""
        ...

    @property
    def path(self) -> Path:
        """The file that it is, or lies in."""
        ...

    def open(self) -> IO[bytes]:
        """The bytes, to be read from their start."""
        ...


def file_mark(path: Path) -> tuple[int, str] | None:
    """Bytes of a file, and a hash of its first and last 64 KiB; None where there is no such file.

    A file that did not change meanwhile is read once a process.
    """
    try:
        found = path.stat()
        return (found.st_size, _ends(path, found.st_size, found.st_mtime_ns)) if stat.S_ISREG(found.st_mode) else None
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return None


@cache
def _ends(path: Path, size: int, changed_ns: int) -> str:
    with path.open("rb") as file:
        found = sha256(file.read(EDGE))
        file.seek(max(size - EDGE, EDGE))
        found.update(file.read())
    return found.hexdigest()[:16]


@dataclass(frozen=True)
class PictureFile:
    """A picture in a file of its own."""

    path: Path

    @property
    def name(self) -> str:
        """Its path."""
        return str(self.path)

    def open(self) -> IO[bytes]:
        """The file."""
        return self.path.open("rb")


@dataclass(frozen=True)
class PictureCell:
    """A picture in a parquet file: bytes, or {bytes, path} as dataset libraries write it.

    Attributes:
        path: Path of the parquet file.
        column, row: Column and row of the cell; `group` is the row group that holds it, `row` counts in it.
        place: Number of the picture, where the cell lists several.
    """

    path: Path
    column: str
    group: int
    row: int
    place: int | None = None

    @property
    def name(self) -> str:
        """File, column, row group, row."""
        place = "" if self.place is None else f", picture {self.place}"
        return f"{self.path}, column {self.column}, row {self.row} of row group {self.group}{place}"

    def open(self) -> IO[bytes]:
        """Read its row group, of which the last two stay in memory."""
        cell = _column(str(self.path), self.column, self.group)[self.row].as_py()
        cell = cell if self.place is None else cell[self.place]
        return BytesIO(cell["bytes"] if isinstance(cell, dict) else cell)


@lru_cache(maxsize=2)
def _column(path: str, column: str, group: int) -> Any:
    return pq.ParquetFile(path).read_row_group(group, columns=[column]).column(0)


class Pictures(Sequence[Image.Image]):
    """The pictures of one sample. Each is decoded anew whenever it is looked at, and belongs to who looked.

    Args:
        sample: id, for messages.
        sources: Sources of the pictures' bytes.
        key: config key that says where to look for them.
    """

    def __init__(self, sample: str, sources: Sequence[Source], key: str = "task.path"):
        self.sample, self.sources, self.key = sample, tuple(sources), key

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._open(self.sources[index], as_seen)

    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each, as its file's head says; nothing is decoded."""
        return [self._open(source, size_seen) for source in self.sources]

    def _open(self, source: Source, take: Callable[[Image.Image], Any]) -> Any:
        self._check(source)
        try:
            with source.open() as file, open_picture(file) as picture:
                return take(picture)
        except BROKEN as error:
            unknown = isinstance(error, UnidentifiedImageError)
            reason = f"no picture format is known for it ({', '.join(FORMATS)} are)" if unknown else short(error)
            raise ValueError(
                f"sample {self.sample}: the picture {short(source.name, PATH)} cannot be read: {reason}. Replace the "
                "file, or drop the sample."
            ) from None
        except Image.DecompressionBombError:
            raise ValueError(
                f"sample {self.sample}: the picture {short(source.name, PATH)} is too large: it has more than "
                f"{2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels. Save it smaller, or drop the sample."
            ) from None

    def check(self) -> None:
        """See that every file is there; opens none.

        Raises:
            ValueError: which one is missing, of which sample.
        """
        for source in self.sources:
            self._check(source)

    def marks(self) -> list[tuple[str, tuple[int, str] | None]]:
        """Name without folders of every picture, and `file_mark` of its file."""
        return [(Path(source.name).name, file_mark(source.path)) for source in self.sources]

    def _check(self, source: Source) -> None:
        if not isfile(source.path):
            raise ValueError(
                f"sample {self.sample}: its picture {short(source.name, PATH)} is missing. Put it there, or "
                f"correct {self.key}."
            )


def picture_sizes(pictures: Sequence[Image.Image]) -> list[tuple[int, int]]:
    """(height, width) of a sample's pictures, which are not decoded for it."""
    return pictures.sizes() if isinstance(pictures, Pictures) else [(p.height, p.width) for p in pictures]
