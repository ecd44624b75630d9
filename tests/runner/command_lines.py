"""Command lines in processes of their own, with all that they and their workers print."""

import os
import subprocess
import sys
import tempfile

from jobs import ROOT

RUN, SWEEP = ("run.py",), ("-m", "btp.sweep")


def typed(*words, **env):
    """What run.py came to with these words: its exit code, and all that was printed."""
    process = Started(RUN, words, env)
    return process.wait(timeout=600), process.printed()


class Started(subprocess.Popen):
    """A program that was started as a user does, in a session of its own so that it may be killed with its workers.

    Args:
        program: RUN or SWEEP.
        words: the command line behind the program's name.
        env: further variables.
    """

    def __init__(self, program, words, env=None):
        self._printed, name = tempfile.mkstemp()
        os.unlink(name)
        super().__init__(
            [sys.executable, *program, *map(str, words)],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=self._printed,
            stderr=self._printed,
            start_new_session=True,
        )

    def printed(self):
        """All that it and its workers have printed so far."""
        return os.pread(self._printed, os.fstat(self._printed).st_size, 0).decode()
