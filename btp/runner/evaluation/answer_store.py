"""Answers on disk: append-only, shared between runs by identity, safe against a kill at any moment."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock, Timeout

from btp.results.shapes import TEXT, Shape, fault, keys, listed, number, optional, whole
from btp.tasks.files.nesting import json_of

ROW = keys(sample=TEXT)
_STAGE = keys(site=TEXT, before=whole(0), after=whole(0), kept=listed(whole(0)))
ANSWER = keys(
    sample=TEXT,
    prediction=TEXT,
    kl=optional(Shape("a number", lambda value: isinstance(value, int | float))),  # inf too
    total=whole(0),
    visual=listed(number(0), 1),
    tokens=listed(number(0), 1),
    stages=listed(_STAGE),
)


class Answers:
    """The rows of one arm. A row is written once, behind what it refers to; a torn last line does not count.

    Args:
        folder: of this arm's identity.
        rank: this process's; each writes its own file, all are read.
        shape: of a row.
    """

    def __init__(self, folder: Path, rank: int = 0, shape: Shape = ROW):
        self.folder, self.rank, self.shape = folder, rank, shape
        folder.mkdir(parents=True, exist_ok=True)

    def rows(self) -> dict[str, dict[str, Any]]:
        """Every finished sample, by its id; a line that cannot be read, or is no row, does not count."""
        found: dict[str, dict[str, Any]] = {}
        for file in sorted(self.folder.glob("rows-*.jsonl")):
            for line in file.read_bytes().split(b"\n")[:-1]:
                with suppress(ValueError):
                    row = json_of(line.decode())
                    if fault(row, self.shape) is None:
                        found.setdefault(row["sample"], row)
        return found

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append finished samples in one write that reaches the disk."""
        file = self.folder / f"rows-{self.rank}.jsonl"
        self._mend(file)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        with file.open("ab") as f:
            f.write(text.encode())
            f.flush()
            os.fsync(f.fileno())

    def add_logits(self, samples: Sequence[str], logits: np.ndarray) -> None:
        """Keep the log-probabilities [B, V] of the first answer token; call it before `add`."""
        folder = self.folder / "first"
        folder.mkdir(exist_ok=True)
        for sample, row in zip(samples, logits, strict=True):
            part = folder / f"{sample}.npy.part"
            with part.open("wb") as f:
                np.save(f, row.astype(np.float32))
                f.flush()
                os.fsync(f.fileno())
            part.replace(folder / f"{sample}.npy")

    def logits(self, sample: str) -> np.ndarray:
        """[V] log-probabilities of a sample's first answer token.

        Raises:
            ValueError: the file is gone or broken.
        """
        file = self.folder / "first" / f"{sample}.npy"
        try:
            found = np.load(file)
            if not isinstance(found, np.ndarray) or found.ndim != 1 or found.dtype.kind != "f":
                raise ValueError("it holds no list of numbers")
            return found
        except (OSError, EOFError, ValueError, BadZipFile) as error:
            raise ValueError(
                f"{file} with the unpruned model's first token is gone or broken ({error}). Set resume=false once to "
                "answer anew."
            ) from None

    def clear(self) -> None:
        """Forget everything."""
        shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)

    @staticmethod
    def _mend(file: Path) -> None:
        """Cut off a torn last line, so that the next row starts on its own."""
        if not file.exists():
            return
        text = file.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            with file.open("r+b") as f:
                f.truncate(whole)


@contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Hold a lock that ends with the process; says so while another run holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0.5)
    except Timeout:
        print(f"waiting for another run that is computing {what} ...", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
