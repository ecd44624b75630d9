"""Whoever stops a command gets no traceback, and nothing goes on computing behind it."""

import os
import signal
import subprocess
import sys
import time

import pytest
from jobs import ROOT

from btp.runner.workers.ranks import bound_to

INTERRUPTED = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(20)\n"


def test_an_interrupt_while_the_command_imports_is_quiet(tmp_path):
    """A stand-in for the first library that it imports sends it."""
    (tmp_path / "hydra.py").write_text(INTERRUPTED)
    found = started(["-c", "import runpy; runpy.run_path('run.py', run_name='__main__')"], tmp_path)
    assert (found.returncode, found.stdout, found.stderr) == (130, "", "")


COMMANDS = ["btp.report", "btp.explain", "btp.study", "btp.sweep", "btp.dashboard", "btp.cite", "btp.models.convert"]
COMMANDS += ["experiments.speed.methods", "experiments.cost.published", "experiments.embedded.train"]


@pytest.mark.parametrize("command", COMMANDS)
def test_an_interrupt_while_any_other_command_imports_is_quiet(tmp_path, command):
    """A stand-in for a library that all import early sends it."""
    (tmp_path / "argparse.py").write_text(INTERRUPTED)
    found = started(["-m", command], tmp_path)
    assert (found.returncode, found.stdout, found.stderr) == (130, "", "")


def test_an_interrupt_later_unwinds_a_command_and_is_quiet(tmp_path):
    """What it holds open is closed first."""
    work = "import os, signal\ntry:\n os.kill(os.getpid(), signal.SIGINT)\nfinally:\n print('closed', flush=True)\n"
    run = "import sys; sys.argv = ['-m']; import btp; exec(sys.stdin.read())"
    found = started(["-c", run], tmp_path, input=work)
    assert (found.returncode, found.stdout, found.stderr) == (-signal.SIGINT, "closed\n", "")


def started(words, path, **more):
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(path), str(ROOT)])}
    command = [sys.executable, *words]
    more |= {"capture_output": True, "text": True, "timeout": 60, "preexec_fn": listen}
    return subprocess.run(command, cwd=ROOT, env=env, **more)


def listen():
    """As a terminal starts a command, whatever these tests were started by."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_an_interrupt_while_a_worker_starts_is_quiet():
    """It waits until the worker can end without a word."""
    worker, bound = [sys.executable, "-m", "btp.runner.workers.start", "none.json"], bound_to(os.getpid())

    def begin():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # which shells have ignored in what they put behind
        bound()

    process = subprocess.Popen(
        worker, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=begin
    )
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)
    assert not said


WORKER = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
PARENT = f"""
import os, subprocess, sys, time
from btp.runner.workers.ranks import bound_to
subprocess.Popen([sys.executable, "-c", {WORKER!r}], preexec_fn=bound_to(os.getpid()))
time.sleep(60)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel of Linux does it")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_ends_with_its_parent(how):
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    parent.send_signal(how)
    parent.wait()
    until = time.monotonic() + 20
    while running(worker) and time.monotonic() < until:
        time.sleep(0.05)
    assert not running(worker)


def running(process):
    """Whether a process lives; a dead one that nobody has waited for does not."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
