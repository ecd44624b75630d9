"""Starts worker processes and reads the outcomes of their runs. No torch here, so that errors come at once.

A worker is a process of its own, without Hydra: what is started again with its command line computes one run, not a
sweep. The runs of a sweep go to one worker, one after another, which saves what a process costs to start; a run that
takes several devices gets fresh ones, one process each (btp/runner/workers/ranks.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from btp.results.atomic import write_json
from btp.runner.messages import say
from btp.runner.workers.ranks import LOST, Ranks, bound_to, devices, environment
from btp.runner.workers.requests import handed_in

FAILED, STOPPED = 1, 130
LISTEN_S = 0.05
WORKER = (sys.executable, "-m", "btp.runner.workers.start")


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        code: exit code, 0 where it finished.
        reason: why not, in one line.
        folder: Folder of the run, where it came so far.
        unreachable: it failed because no schedule meets its budget.
        leaves: the worker process ends with this run, whatever else is waiting.
    """

    code: int
    reason: str = ""
    folder: str | None = None
    unreachable: bool = False
    leaves: bool = False

    @classmethod
    def of(cls, error: BaseException, **more: Any) -> Outcome:
        """Of a run that ended in an error."""
        return cls(FAILED, " ".join(str(error).split()) or type(error).__name__, **more)

    def write(self, request: Path, rank: int = 0) -> None:
        """Leave it beside the request, whole or not at all; each process of the run its own."""
        write_json(_outcome(request, rank), asdict(self))


class Workers:
    """Worker processes of one command line.

    Args:
        serving: hand requests that allow it to one process, one after another.
    """

    def __init__(self, serving: bool) -> None:
        self.serving = serving
        self._process: subprocess.Popen[str] | None = None

    def run(self, spool: Path, config: Mapping[str, Any]) -> Outcome:
        """Have a run computed, and wait for it.

        Args:
            spool: folder for the request and its outcome, which are removed afterwards.
            config: resolved.

        Raises:
            KeyboardInterrupt: the user stopped it; the worker has ended.
            CannotWrite: there is no room for the request, or no permission.
        """
        world = len(devices(config["trainer"]))
        with handed_in(spool, config) as request:
            if world > 1:
                return self._together(request, world)
            alone = not self.serving
            process = self._fresh(request) if alone else self._hand_over(request)
            try:
                return self._wait(process, request, alone)
            except KeyboardInterrupt:
                _end(process)
                raise

    def close(self) -> None:
        """Let the serving process end."""
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()  # type: ignore[union-attr]
            _end(self._process)
            self._process = None

    def _together(self, request: Path, world: int) -> Outcome:
        ranks = Ranks([*WORKER, str(request)], world)
        try:
            codes = ranks.wait(LISTEN_S)
            return _of_all(codes, [_read(request, rank) for rank in range(world)])
        finally:
            ranks.end()

    def _fresh(self, request: Path) -> subprocess.Popen[str]:
        begin = bound_to(os.getpid())
        return subprocess.Popen([*WORKER, str(request)], encoding="utf-8", env=environment(), preexec_fn=begin)

    def _hand_over(self, request: Path) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [*WORKER, "--serve"],
                stdin=subprocess.PIPE,
                encoding="utf-8",
                errors="surrogateescape",
                env=environment(),
                preexec_fn=bound_to(os.getpid()),
            )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is ending; waiting for it tells how
            self._process.stdin.write(f"{request}\n")
            self._process.stdin.flush()
        return self._process

    def _wait(self, process: subprocess.Popen[str], request: Path, alone: bool) -> Outcome:
        while process.poll() is None and (alone or not _outcome(request).exists()):
            time.sleep(LISTEN_S)
        outcome = _read(request)
        if outcome is not None:
            if outcome.leaves and not alone:
                self.close()
            return outcome
        reason = f"the worker process ended with {_how(process.returncode)}"
        print(file=sys.stderr)  # its progress bar may have left the line open
        say(reason)
        return Outcome(FAILED, reason)


def _of_all(codes: Sequence[int], outcomes: Sequence[Outcome | None]) -> Outcome:
    """One outcome of the processes of a run: the first error that one of them names, said once."""
    if not any(codes) and outcomes[0] is not None:
        return outcomes[0]
    folder = next((o.folder for o in outcomes if o is not None and o.folder is not None), None)
    named = [o for o in outcomes if o is not None and o.code not in (0, LOST)]
    if named:
        outcome = replace(named[0], folder=folder)
    else:
        dead = [r for r, code in enumerate(codes) if code not in (0, LOST, -signal.SIGTERM)]
        rank = next(iter(dead or [r for r, code in enumerate(codes) if code] or [0]))
        outcome = Outcome(
            FAILED,
            f"process {rank} of {len(codes)} of this run ended with {_how(codes[rank])}, so the others were ended too; "
            "the same command goes on from here",
            folder,
        )
    say(outcome.reason)
    if folder is not None:
        _note(Path(folder) / "run.json", outcome.reason)
    return outcome


def _note(file: Path, reason: str) -> None:
    """Have run.json say that the run has failed, where none of its processes could."""
    with contextlib.suppress(OSError, ValueError):
        state = json.loads(file.read_text(encoding="utf-8"))
        write_json(file, state | {"state": "failed", "error": reason})


def _how(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def _outcome(request: Path, rank: int = 0) -> Path:
    return request.with_suffix(f".outcome{rank}" if rank else ".outcome")


def _read(request: Path, rank: int = 0) -> Outcome | None:
    """How a process says that its run ended; None where it could not."""
    file = _outcome(request, rank)
    return Outcome(**json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None


def _end(process: subprocess.Popen[str]) -> None:
    """Wait for a process that was told to end, and insist after a while."""
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()
