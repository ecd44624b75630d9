"""State of a sweep's cells on disk, whichever process or machine they ran on.

A sweep's folder holds `sweep.json` (the command), `planned.json` (the words of each cell that it comes to) and
`cells/NUMBER.json`, one per run that began. A cell's file is rewritten whole and touched while the cell runs, so that
another machine can tell a slow cell from a dead one. No torch here.
"""

from __future__ import annotations

import datetime
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from btp.results.atomic import clear_parts, write_json
from btp.results.command_line import as_line
from btp.results.disk import make_folder
from btp.results.shapes import NAMED, TEXT, TIME, either, keys, listed, one_of, optional, read_json, whole
from btp.results.shipped import PROGRAM
from btp.runner.workers.launch import STOPPED, Outcome

BEAT_S, SILENT_S = 5.0, 60.0
ELSEWHERE = ("-", "hydra/launcher", "hydra.launcher", "hydra.sweep.", "hydra.sweeper.n_", "hydra.verbose")
ELSEWHERE += ("trainer", "logger", "resume", "debug", "cache")
RUNNING, FINISHED, FAILED, BEYOND, DIED, OPEN = "running", "finished", "failed", "beyond budget", "died", "open"
SWEEP = keys(words=listed(TEXT), study=optional(NAMED))  # sweep.json
PLANNED = listed(TEXT)
_TIMES = dict.fromkeys(("began", "ended"), optional(either("a time, or nothing", one_of(""), TIME)))
CELL = keys(
    number=whole(0),
    words=TEXT,
    state=one_of(RUNNING, FINISHED, FAILED, BEYOND, DIED, OPEN),
    folder=optional(TEXT),
    pid=optional(whole(0, 2**31 - 1)),
    starts=optional(whole(0)),
    **dict.fromkeys(("reason", "host", "job"), optional(TEXT)),
    **_TIMES,
)


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        number: its place in the sweep.
        words: Words of its command line.
        state: running | finished | failed | beyond budget (no schedule meets it) | died (ended without a word) | open
            (not begun).
        reason: why it is not finished.
        folder: Folder of the run, as far as known.
        host, pid, job: Host, process and batch job that it runs in.
        starts: how often it was begun.
        began, ended: times.
    """

    number: int
    words: str
    state: str = OPEN
    reason: str = ""
    folder: str | None = None
    host: str = ""
    pid: int = 0
    job: str = ""
    starts: int = 0
    began: str = ""
    ended: str = ""


class Cells:
    """The cells of one sweep.

    Args:
        sweep: its folder.
    """

    def __init__(self, sweep: Path) -> None:
        self.sweep, self.folder = sweep, sweep / "cells"

    def open(self, words: Sequence[str], study: Mapping[str, Any] | None = None, planned: Sequence[str] = ()) -> None:
        """Note the command of the sweep, what it comes to, and the study that it makes, unless an earlier start did.

        Args:
            words: Words of the command.
            study: Study of its experiment.
            planned: the words of every cell, as far as they are known; empty where not even their number is.

        Raises:
            ValueError: the folder is that of another sweep, whose cells have the same numbers.
        """
        if (self.sweep / "sweep.json").exists() and _cells_of(self.command()) != _cells_of(words):
            raise ValueError(
                f"{self.sweep} is the folder of another sweep: {PROGRAM} {as_line(self.command())}. Give this one "
                "another folder: hydra.sweep.dir."
            )
        self.sweep.parent.mkdir(parents=True, exist_ok=True)
        make_folder(self.folder)
        facts = {"words": list(words), "cwd": os.getcwd(), "host": socket.gethostname(), "began": _now()}
        facts |= {"study": dict(study)} if study else {}
        if not (self.sweep / "sweep.json").exists():
            write_json(self.sweep / "sweep.json", facts)
        write_json(self.sweep / "planned.json", list(planned))
        clear_parts(self.folder)

    def withdraw(self) -> None:
        """Leave nothing of a sweep that was refused before its first cell began."""
        if any(self.folder.glob("*.json")):
            return
        for name in ("sweep.json", "planned.json", "multirun.yaml"):
            (self.sweep / name).unlink(missing_ok=True)
        for folder in (self.folder, self.sweep):
            with suppress(OSError):  # of somebody's own things
                folder.rmdir()

    def command(self) -> list[str]:
        """The words that started the sweep.

        Raises:
            ValueError: the folder is no sweep's.
        """
        file = self.sweep / "sweep.json"
        if not file.exists():
            raise ValueError(
                f"{self.sweep} holds no sweep.json, so it is no sweep's folder. Name the one that "
                f"`{PROGRAM} -m ...` printed, by default below outputs/multirun."
            )
        return read_json(file, SWEEP, self._again())["words"]

    def study(self) -> dict[str, Any] | None:
        """The study that the sweep makes, as its experiment's yaml has it; None where it makes none."""
        file = self.sweep / "sweep.json"
        try:
            return read_json(file, SWEEP, "").get("study")
        except ValueError:  # which `command` says
            return None

    def read(self) -> list[Cell]:
        """All cells, in order; those that began and whose process is gone are `died`.

        Raises:
            ValueError: planned.json is broken.
        """
        found = {number: Cell(number, words) for number, words in enumerate(self._planned())}
        for file in sorted(file for file in self.folder.glob("*.json") if file.stem.isdecimal()):
            cell = _read(file)
            cell = replace(cell, words=cell.words or found.get(cell.number, cell).words)
            if cell.state == RUNNING and not _alive(cell, file):
                cell = replace(cell, state=DIED, reason="its process ended without a word; resume goes on from there")
            found[cell.number] = cell
        return sorted(found.values(), key=lambda cell: cell.number)

    def _planned(self) -> list[str]:
        file = self.sweep / "planned.json"
        return read_json(file, PLANNED, self._again()) if file.exists() else []  # none of an older release

    def _again(self) -> str:
        return (
            f"Delete it and give the sweep's own command again, with hydra.sweep.dir={self.sweep}: finished cells are "
            "not computed again."
        )

    @contextmanager
    def running(self, number: int, words: str) -> Iterator[_Note]:
        """A cell from its start to its end; what is noted in between is its outcome."""
        file = self.folder / f"{number:04d}.json"
        make_folder(self.folder)
        before = _read(file) if file.exists() else Cell(number, words)
        where = {"host": socket.gethostname(), "pid": os.getpid(), "job": _job(), "starts": before.starts + 1}
        cell = replace(Cell(number, words), state=RUNNING, began=_now(), **where)
        write_json(file, asdict(cell))
        note, stop = _Note(before), threading.Event()
        beat = threading.Thread(target=_beat, args=(file, stop), daemon=True)
        beat.start()
        try:
            yield note
        finally:
            stop.set()
            beat.join()
            write_json(file, asdict(note.of(cell)))


class _Note:
    """What a cell's outcome comes to; one that ends without an outcome was stopped."""

    outcome = Outcome(STOPPED, "stopped")

    def __init__(self, before: Cell) -> None:
        self.before = before  # as an earlier start left it

    def of(self, cell: Cell) -> Cell:
        outcome = self.outcome
        state = FINISHED if not outcome.code else BEYOND if outcome.unreachable else FAILED
        return replace(cell, state=state, reason=outcome.reason, folder=outcome.folder, ended=_now())


def _read(file: Path) -> Cell:
    """A cell's file, of whichever release; one that a full disk or a power cut broke says so and begins anew."""
    try:
        facts = read_json(file, CELL, "resume writes it anew")
        return Cell(**{name: facts[name] for name in Cell.__dataclass_fields__ if name in facts})
    except ValueError as error:
        return Cell(int(file.stem), "", reason=str(error).replace(str(file), file.name))


def _cells_of(words: Sequence[str]) -> set[str]:
    """The words of a command line that make its cells what they are: not where they run or are logged."""
    return {word for word in words if not word.startswith(ELSEWHERE)}


def _job() -> str:
    """How the batch system calls what runs here, as its own commands take it."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{what}_ID") for what in ("JOB", "TASK"))
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def _beat(file: Path, stop: threading.Event) -> None:
    while not stop.wait(BEAT_S):
        file.touch()


def _alive(cell: Cell, file: Path) -> bool:
    if not cell.began:
        return False
    if cell.host == socket.gethostname():
        try:
            process = psutil.Process(cell.pid)
            began = datetime.datetime.fromisoformat(cell.began).timestamp()
            # a process that began later has taken the number over
            return process.status() != psutil.STATUS_ZOMBIE and process.create_time() < began + 1
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return True  # another user's
    return time.time() - file.stat().st_mtime < SILENT_S


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
