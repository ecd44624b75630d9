"""Runs of the main job for tests: composed as run.py does, computed in this process or in one of their own."""

import os
import subprocess
import sys
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from btp.runner.run import Run

ROOT = Path(__file__).resolve().parents[2]


def composed(*overrides):
    """The resolved config of a command line."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=True)
    return config | {"command": " ".join(["python run.py", *overrides])}


def job(output, *overrides):
    """Run the job here; returns the run folder."""
    quiet = [] if any(o.startswith("logger=") for o in overrides) else ["logger=none"]
    run = Run(composed("experiment=smoke", *quiet, "trainer=cpu", f"output={output}", *overrides))
    run.go()
    return run.folder.path


def command(*overrides, **kwargs):
    """Start run.py as a user does."""
    env = kwargs.pop("env", os.environ) | {"OMP_NUM_THREADS": "1"}
    kwargs = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | kwargs
    return subprocess.Popen(
        [sys.executable, "run.py", *overrides], cwd=ROOT, env=env, text=True, start_new_session=True, **kwargs
    )
