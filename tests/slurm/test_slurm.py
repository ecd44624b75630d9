"""A sweep on a real Slurm of one node, disturbed in every way that a cluster knows: the table stays the same.

`make test-slurm`; needs slurmctld, slurmd and munged, and starts them for itself alone.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from sweeps import cells, start, sweep_command, table, times_computed

HERE = Path(__file__).parent
CELLS = ("pruner=random,diversity,attention", "budget.share=0.5,0.4,0.35,0.3", "limit=18")
LAUNCHER = (
    "hydra/launcher=slurm",
    "hydra.launcher.gpus_per_node=0",
    "hydra.launcher.cpus_per_task=4",
    "hydra.launcher.mem_gb=2",
    "hydra.launcher.signal_delay_s=20",
)
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(shutil.which("slurmctld") is None, reason="Slurm is not installed"),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The environment of a running Slurm."""
    home = tmp_path_factory.mktemp("slurm")
    subprocess.run([HERE / "up.sh", home], check=True)
    path = f"{HERE / 'bin'}{os.pathsep}{os.environ['PATH']}"
    yield os.environ | {"SLURM_CONF": str(home / "slurm.conf"), "PATH": path, "OMP_NUM_THREADS": "1"}
    subprocess.run([HERE / "down.sh", home], check=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The same cells in order, in one process on this machine."""
    home = tmp_path_factory.mktemp("undisturbed")
    assert start(home, *CELLS).wait(timeout=600) == 0
    return home


def running(sweep):
    """Cells that run now."""
    return [cell for cell in cells(sweep) if cell["state"] == "running"] if (sweep / "cells").exists() else []


def slurm(lab, *arguments):
    """A command of Slurm, which takes effect at once; scancel --signal would repeat itself until the job has left."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(arguments, env=lab, capture_output=True, check=False, timeout=2)


def workers(pid):
    """What a cell's process started."""
    import psutil

    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def test_twelve_cells_disturbed(lab, undisturbed, tmp_path):
    """scancel, kill -9 of a job and of its worker, pre-emption by USR2 and requeue at random moments; then resume."""
    sweep, chance = tmp_path / "sweep", random.Random(0)
    process = start(tmp_path, *CELLS, *LAUNCHER, env=lab)
    until, blows = time.monotonic() + 400, []
    kinds = ["cancel", "kill job", "kill worker", "preempt", "requeue", "cancel", "kill worker"]
    while kinds and process.poll() is None and time.monotonic() < until:
        time.sleep(chance.uniform(0.5, 2))
        found = [cell for cell in running(sweep) if times_computed(tmp_path / "out") and workers(cell["pid"])]
        if not found:
            continue
        cell, kind = chance.choice(found), kinds.pop(0)
        if kind == "cancel":
            slurm(lab, "scancel", cell["job"])
        elif kind == "preempt":
            slurm(lab, "scancel", "--signal=USR2", cell["job"])
        elif kind == "requeue":
            slurm(lab, "scontrol", "requeue", cell["job"])
        else:
            pids = [cell["pid"]] if kind == "kill job" else [p.pid for p in workers(cell["pid"])]
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        blows.append(kind)
    assert not kinds, f"only {blows} came about"
    process.wait(timeout=400)
    assert process.returncode == 1, "some cells are not finished, and the exit code must say so"
    assert any(cell["starts"] > 1 for cell in cells(sweep)), "no cell was queued again by Slurm"
    resumed = sweep_command("resume", sweep, env=lab)
    assert resumed.returncode == 0, resumed.stderr
    assert {cell["state"] for cell in cells(sweep)} == {"finished"}
    assert len(cells(sweep)) == 12
    assert set(times_computed(tmp_path / "out").values()) == {1}
    assert table(sweep).equals(table(undisturbed / "sweep"))
