"""Runs of the main job for tests: composed as run.py does, computed in this process or in one of their own."""

import copy
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from btp.runner.run import Run

ROOT = Path(__file__).resolve().parents[2]


def composed(*overrides):
    """The resolved config of a command line, a copy of one's own."""
    return copy.deepcopy(_once(overrides)) | {"command": " ".join(["python run.py", *overrides])}


@cache
def _once(overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=True)


def job(output, *overrides):
    """Run the job here; returns the run folder."""
    quiet = [] if any(o.startswith("logger=") for o in overrides) else ["logger=none"]
    run = Run(composed("experiment=smoke", *quiet, "trainer=cpu", f"output={output}", *overrides))
    run.go()
    return run.folder.path


class Started(subprocess.Popen):
    """run.py started as a user does, in a session of its own so that it may be killed with its workers.

    Args:
        words: the command line behind the program's name.
        env: all variables, in place of those that are set here.
        kwargs: what subprocess.Popen takes.
    """

    def __init__(self, words, env=None, **kwargs):
        env = (os.environ if env is None else env) | {"OMP_NUM_THREADS": "1"}
        line = [sys.executable, "run.py", *map(str, words)]
        super().__init__(line, cwd=ROOT, env=env, text=True, start_new_session=True, stderr=subprocess.STDOUT, **kwargs)


class Noted(Started):
    """The same, with all that it and its workers print kept in a file, so that no pipe fills while nobody reads."""

    def __init__(self, words, env=None):
        self._printed, name = tempfile.mkstemp()
        os.unlink(name)
        super().__init__(words, env, stdin=subprocess.DEVNULL, stdout=self._printed)

    def printed(self):
        """What was printed so far."""
        return os.pread(self._printed, os.fstat(self._printed).st_size, 0).decode()


def command(*overrides, **kwargs):
    """run.py with these words; what it prints goes into a pipe, unless `stdout` says where."""
    return Started(overrides, **{"stdout": subprocess.PIPE} | kwargs)


def typed(*words, **env):
    """What run.py came to with these words and further variables: its exit code, and all that was printed."""
    process = Noted(words, os.environ | env)
    return process.wait(timeout=600), process.printed()
