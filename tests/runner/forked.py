"""Command lines in a process forked from this one: run.py's own code, whose libraries are imported already.

What a process costs to start is left out, and nothing else: the workers are forked as well, talk to the command line as
they always do, and may be killed. That the programs start at all is seen by tests that use `jobs.command`.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile

from jobs import ROOT

from btp.cli import run as command_line
from btp.runner import run as worker
from btp.runner.workers import launch

FORK = multiprocessing.get_context("fork")


def typed(*words, **env):
    """What run.py came to with these words: its exit code, and all that was printed."""
    process = Forked(command_line.main, words, env)
    return process.wait(timeout=600), process.printed()


class Forked:
    """A function of the command line in a process of its own, as subprocess.Popen would give it.

    Args:
        main: returns an exit code, or raises SystemExit with one.
        words: the command line behind the program's name.
        env: further variables.
    """

    def __init__(self, main, words, env=None):
        self._printed, name = tempfile.mkstemp()
        os.unlink(name)
        self._process = FORK.Process(target=_begin, args=(main, [*map(str, words)], env or {}, self._printed))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return self._process.exitcode

    def printed(self):
        """All that it and its workers have printed so far."""
        return os.pread(self._printed, os.fstat(self._printed).st_size, 0).decode()


def _begin(main, words, env, out):
    os.setsid()
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(out), "w", buffering=1, encoding="utf-8") for _ in "oe")
    os.chdir(ROOT)
    os.environ.update(env)
    sys.argv = ["run.py", *words]
    launch.subprocess = _Processes
    sys.exit(main())


class _Worker:
    """A worker process: forked, where `btp.runner.workers.launch` would start one."""

    def __init__(self, arguments, stdin=None, env=None, preexec_fn=None, **encoding):
        assert tuple(arguments[:3]) == launch.WORKER
        there, here = os.pipe() if stdin is not None else (None, None)
        self.stdin = os.fdopen(here, "w", **encoding) if here is not None else None
        self.returncode = None
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            try:
                if self.stdin is not None:
                    os.close(here)
                    sys.stdin = os.fdopen(there, **encoding)
                preexec_fn()
                os.environ.clear()
                os.environ.update(env)
                sys.argv = arguments[2:]
                code = worker.main()
            except BaseException:
                sys.excepthook(*sys.exc_info())
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        if there is not None:
            os.close(there)

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout=None):
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def terminate(self):
        os.kill(self.pid, signal.SIGTERM)


class _Processes:
    PIPE, TimeoutExpired, Popen = subprocess.PIPE, subprocess.TimeoutExpired, _Worker
