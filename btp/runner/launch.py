"""Starts worker processes and hears how their runs ended. No torch here, so that errors come at once.

A worker is a process of its own, without Hydra: Lightning may start more processes in it, which under a sweep would
run the whole sweep again. The runs of a sweep go to one worker, one after another, which saves what a process costs to
start; where a run takes several devices, each gets a fresh one, since Lightning repeats its command line.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FAILED, STOPPED = 1, 130
LISTEN_S = 0.05
WORKER = (sys.executable, "-m", "btp.runner.worker")


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        code: exit code, 0 where it finished.
        reason: why not, in one line.
        folder: of the run, where it came so far.
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

    def write(self, request: Path) -> None:
        """Leave it beside the request, whole or not at all."""
        part = request.with_suffix(".part")
        part.write_text(json.dumps(asdict(self)))
        part.replace(_outcome(request))


class Workers:
    """Worker processes of one command line.

    Args:
        serving: hand requests that allow it to one process, one after another.
    """

    def __init__(self, serving: bool) -> None:
        self.serving = serving
        self._process: subprocess.Popen[str] | None = None

    def run(self, request: Path, config: Mapping[str, Any]) -> Outcome:
        """Have a request computed, and wait for it.

        Args:
            request: a JSON file with `config`; removed afterwards.
            config: resolved.

        Raises:
            KeyboardInterrupt: the user stopped it; the worker has ended.
        """
        request.write_text(json.dumps(config))
        alone = not self.serving or config["trainer"]["devices"] not in (1, "1")
        process = self._fresh(request) if alone else self._hand_over(request)
        try:
            return self._wait(process, request, alone)
        except KeyboardInterrupt:
            _end(process)
            raise
        finally:
            request.unlink(missing_ok=True)
            _outcome(request).unlink(missing_ok=True)

    def close(self) -> None:
        """Let the serving process end."""
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()  # type: ignore[union-attr]
            _end(self._process)
            self._process = None

    def _fresh(self, request: Path) -> subprocess.Popen[str]:
        return subprocess.Popen([*WORKER, str(request)], text=True)

    def _hand_over(self, request: Path) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen([*WORKER, "--serve"], stdin=subprocess.PIPE, text=True)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is ending; waiting for it tells how
            self._process.stdin.write(f"{request}\n")
            self._process.stdin.flush()
        return self._process

    def _wait(self, process: subprocess.Popen[str], request: Path, alone: bool) -> Outcome:
        while process.poll() is None and (alone or not _outcome(request).exists()):
            time.sleep(LISTEN_S)
        if _outcome(request).exists():
            outcome = Outcome(**json.loads(_outcome(request).read_text()))
            if outcome.leaves and not alone:
                self.close()
            return outcome
        code = process.returncode
        how = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        print(f"error: the worker process ended with {how}", file=sys.stderr)
        return Outcome(FAILED, f"the worker process ended with {how}")


def _outcome(request: Path) -> Path:
    return request.with_suffix(".outcome")


def _end(process: subprocess.Popen[str]) -> None:
    """Wait for a process that was told to end, and insist after a while."""
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()
