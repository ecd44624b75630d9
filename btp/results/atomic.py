"""Atomic file writes: readers see the old or the new content, also over a shared file system.

Each is written under a temporary name, which its writer holds locked. One that nobody holds was left by a process that
was killed; whoever comes next removes it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from uuid import uuid4

from btp.results.disk import open_up, writing

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

_PART = re.compile(r"\.[0-9a-f]{32}$|\.npy\.part$")  # the second as older releases named some


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to write into, which takes the place of `path` at the end; an error leaves `path` as it was.

    Raises:
        CannotWrite: there is no room, or no permission.
    """
    with writing(path):
        part, file = _begun(path)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                open_up(part)
                part.replace(path)  # still locked
        except BaseException:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file whole or not at all."""
    with whole(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8 whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(content, indent=1))


def write_parquet(path: Path, frame: pd.DataFrame) -> None:
    """Write a table without its index whole or not at all."""
    buffer = BytesIO()
    frame.to_parquet(buffer, index=False)
    write_bytes(path, buffer.getbuffer())


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array as numpy.load reads it, whole or not at all."""
    import numpy as np  # late: the command line does without

    buffer = BytesIO()
    np.save(buffer, array)
    write_bytes(path, buffer.getbuffer())


def clear_parts(folder: Path) -> None:
    """Remove what killed processes left under temporary names, at any depth; links are not followed."""
    for where, _, names in os.walk(folder):
        for name in names:
            if _PART.search(name):
                _remove_unheld(Path(where) / name)


def _begun(path: Path) -> tuple[Path, IO[bytes]]:
    """A new temporary file beside `path`, locked where the file system has locks."""
    while True:
        part = path.with_name(f".{path.name}.{uuid4().hex}")  # hosts and process numbers repeat, between containers
        file = part.open("xb")
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return part, file
        file.close()  # somebody took it for a stale one before it was locked


def _remove_unheld(part: Path) -> None:
    with suppress(OSError), part.open("r+b") as file:  # BlockingIOError: its writer lives
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.unlink()
