"""Answers on disk: append-only, shared between runs by identity, safe against a kill at any moment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import RawIOBase
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock, Timeout

from btp.results.atomic import write_array
from btp.results.disk import make_folder, open_up, writing
from btp.results.shapes import TEXT, Shape, fault, keys, listed, number, optional, whole
from btp.tasks.files.json_nesting import json_of

ROW = keys(sample=TEXT)
_STAGE = keys(site=TEXT, before=whole(0), after=whole(0), kept=listed(whole(0)))
_STEP = keys(step=whole(0), site=TEXT, computed=whole(0), revived=whole(0), parked=whole(0))
ANSWER = keys(
    sample=TEXT,
    prediction=TEXT,
    kl=optional(Shape("a number", lambda value: isinstance(value, int | float))),  # inf too
    total=whole(0),
    visual=listed(number(0), 1),
    tokens=listed(number(0), 1),
    stages=listed(_STAGE),
    slots=optional(number(0)),
    slots_avg=optional(number(0)),
    answer_tokens=optional(number(0)),
    kl_steps=optional(Shape("a number", lambda value: isinstance(value, int | float))),
    evicted=optional(whole(0)),
    steps=optional(listed(_STEP)),
)


class Answers:
    """The rows of one arm. A row is written once, behind what it refers to; a torn last line does not count.

    Args:
        folder: Folder of this arm's identity.
        rank: this process's; each writes its own file, all are read.
        shape: Shape of a row.
    """

    def __init__(self, folder: Path, rank: int = 0, shape: Shape = ROW):
        self.folder, self.rank, self.shape = folder, rank, shape
        make_folder(folder)

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
        text = "".join(json.dumps(row) + "\n" for row in rows)
        with writing(file):
            self._mend(file)
            new = not file.exists()
            with file.open("ab", buffering=0) as f:  # what a full disk refuses stays nowhere
                if new:
                    open_up(file)
                _write_all(f, text.encode())
                os.fsync(f.fileno())

    def add_logits(self, samples: Sequence[str], logits: np.ndarray) -> None:
        """Keep the log-probabilities [B, ..., V] that answers are compared by; call it before `add`."""
        folder = self.folder / "first"
        make_folder(folder)
        for sample, row in zip(samples, logits, strict=True):
            write_array(folder / f"{sample}.npy", row.astype(np.float32))

    def logits(self, sample: str) -> np.ndarray:
        """[..., V] log-probabilities that a sample's answer is compared by.

        Raises:
            ValueError: the file is gone or broken.
        """
        file = self.folder / "first" / f"{sample}.npy"
        try:
            found = np.load(file)
            if not isinstance(found, np.ndarray) or not found.ndim or found.dtype.kind != "f":
                raise ValueError("it holds no list of numbers")
            return found
        except (OSError, EOFError, ValueError, BadZipFile) as error:
            raise ValueError(
                f"{file} with the unpruned model's answer is gone or broken ({error}). Set resume=false once to "
                "answer anew."
            ) from None

    def add_steps(self, samples: Sequence[str], steps: Sequence[np.ndarray]) -> None:
        """Keep what was likeliest in each step of an answer, [T, 2, K] of a sample; call it before `add`."""
        folder = self.folder / "steps"
        make_folder(folder)
        for sample, row in zip(samples, steps, strict=True):
            write_array(folder / f"{sample}.npy", row.astype(np.float32))

    def steps(self, samples: Sequence[str]) -> list[np.ndarray] | None:
        """What `add_steps` kept of samples; None where some have nothing (answers of earlier versions)."""
        files = [self.folder / "steps" / f"{sample}.npy" for sample in samples]
        if not all(file.exists() for file in files):
            return None
        with suppress(OSError, EOFError, ValueError, BadZipFile):  # broken
            return [np.load(file) for file in files]
        return None

    def clear(self) -> None:
        """Forget every answer.

        The distributions stay, for other runs that compare theirs with them right now; each is replaced, whole, before
        its sample's new row is written.
        """
        for file in self.folder.glob("rows-*.jsonl"):
            with writing(file):
                file.unlink(missing_ok=True)

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


def _write_all(file: RawIOBase, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


@contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Hold a lock that ends with the process; says so while another run holds it."""
    make_folder(path.parent)
    lock = FileLock(path, mode=0o666)  # it holds nothing, and whoever shares the folder has to take it
    try:
        with writing(path):
            lock.acquire(timeout=0.5)
    except Timeout:
        print(f"waiting for another run that is computing {what} ...", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
