"""The processes of a run that takes several devices: one per device, started together, ended together. No torch here.

Each is the same command line with its place in the standard variables of torch.distributed, so that torchrun may start
them as well. Only the parent watches them: where one ends badly, it ends the others.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

LOST = 75  # exit code of a process that ends because another one did
GRACE_S = 2.0  # for others that are about to end with an error of their own
END_S = 15.0  # for what was told to end
PR_SET_PDEATHSIG = 1  # of Linux's <sys/prctl.h>
_PRCTL = getattr(ctypes.CDLL(None), "prctl", None)  # loaded here: a process that was just forked should load nothing
FOREIGN = ("SLURM_", "PMI_", "OMPI_", "TORCHELASTIC_")  # a launcher's, who does not know of these processes


def devices(trainer: Mapping[str, Any]) -> list[int]:
    """The indices of the devices that a trainer config asks for; one process works on each.

    Args:
        trainer: accelerator, and devices: how many, a list of indices, or auto for all there are.

    Raises:
        ValueError: there are not as many, or none of that name.
    """
    asked, on_cpu = trainer["devices"], trainer["accelerator"] == "cpu"
    if isinstance(asked, int) and not isinstance(asked, bool) and (asked == 1 or (on_cpu and asked > 1)):
        return list(range(asked))
    if on_cpu and asked == "auto":
        return [0]
    wanted = list(range(asked)) if isinstance(asked, int) and asked > 0 else asked
    if wanted != "auto" and not (isinstance(wanted, Sequence) and wanted and all(isinstance(i, int) for i in wanted)):
        raise ValueError(
            f"trainer.devices is {asked!r}. Set it to a whole number from 1 on, to a list of device indices such as "
            "[0,2], or to auto for all devices."
        )
    if on_cpu:
        raise ValueError(f"trainer.devices is {asked}, but a CPU has no indices. Set trainer.devices to their number.")
    import torch  # late: an ordinary run does without it here

    found = torch.cuda.device_count()
    if wanted == "auto":
        return list(range(max(1, found)))
    if missing := [i for i in wanted if not 0 <= i < found]:
        raise ValueError(
            f"trainer.devices is {asked}, but this machine has {found} GPU(s), and none with index {missing[0]}. "
            "Lower trainer.devices, or set trainer.accelerator=cpu for processes on the CPU."
        )
    return list(wanted)


def bound_to(parent: int) -> Callable[[], None]:
    """What a new worker process does before anything else, as subprocess.Popen's preexec_fn.

    It ends with its parent, however that ends. A batch system's warning is not for it but for the cell that waits for
    it, and an interrupt waits until the worker can end without a word (btp/runner/workers/start.py).

    Args:
        parent: id of the process that starts it, from its main thread.
    """

    def begin() -> None:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        if _PRCTL is not None:
            _PRCTL(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)  # nothing that a worker writes minds it
            if os.getppid() != parent:  # it has ended already
                os._exit(LOST)

    return begin


def environment() -> dict[str, str]:
    """The environment of a worker: transformers reads its own docstrings, which PYTHONOPTIMIZE=2 leaves out."""
    level = os.environ.get("PYTHONOPTIMIZE", "")
    return {**os.environ, "PYTHONOPTIMIZE": "1"} if level.isdecimal() and int(level) > 1 else dict(os.environ)


class Ranks:
    """Processes of one run, rank 0 first.

    Args:
        command: Command of each.
        world: Number of processes.
    """

    def __init__(self, command: Sequence[str], world: int) -> None:
        self._processes: list[subprocess.Popen[str]] = []
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        plain = {k: v for k, v in environment().items() if not k.startswith(FOREIGN)}
        for rank in range(world):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
            env = plain | address | {k: str(v) for k, v in place.items()}
            begin = bound_to(os.getpid())
            self._processes.append(subprocess.Popen([*command], env=env, encoding="utf-8", preexec_fn=begin))

    @property
    def codes(self) -> list[int | None]:
        """Exit codes by rank, negative for signals; None while a process runs."""
        return [process.poll() for process in self._processes]

    def wait(self, every_s: float) -> list[int]:
        """Wait until all have ended, and end all where one has failed.

        Returns:
            Exit codes by rank. Those that this ended are among them with LOST or the signal they got.
        """
        while None in self.codes and not any(self.codes):
            time.sleep(every_s)
        if None in self.codes:
            until = time.monotonic() + GRACE_S
            while None in self.codes and time.monotonic() < until:
                time.sleep(every_s)
        self.end()
        return [process.wait() for process in self._processes]

    def end(self) -> None:
        """Tell those that still run to end, and insist after a while."""
        running = [process for process in self._processes if process.poll() is None]
        for process in running:
            process.terminate()
        until = time.monotonic() + END_S
        for process in running:
            try:
                process.wait(timeout=max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
