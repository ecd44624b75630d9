"""A sweep of several cells at once, killed, looked at, resumed: the same table, and no sample twice."""

import os
import signal
import time

import psutil
import pytest
from sweeps import cells, start, sweep_command, table, times_computed

CELLS = ("pruner=random,diversity", "budget.share=0.4,0.3", "limit=18")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The sweep in order, in one process."""
    home = tmp_path_factory.mktemp("undisturbed")
    assert start(home, *CELLS).wait(timeout=400) == 0, (home / "printed.txt").read_text()
    return home


def test_cells_are_noted(undisturbed):
    noted = cells(undisturbed / "sweep")
    assert [cell["state"] for cell in noted] == ["finished"] * 4
    assert [cell["starts"] for cell in noted] == [1] * 4
    shown = sweep_command("status", undisturbed / "sweep")
    assert shown.returncode == 0
    assert "4 finished" in shown.stdout


def test_killed_side_by_side_and_resumed(undisturbed, tmp_path):
    """Two cells at a time, killed hard with all they started as soon as answers lie on disk."""
    process = start(tmp_path, *CELLS, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    until = time.monotonic() + 200
    while not times_computed(tmp_path / "out") and time.monotonic() < until:
        time.sleep(0.02)
    for child in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        child.send_signal(signal.SIGKILL)
    process.wait()
    before = times_computed(tmp_path / "out")
    assert before, (tmp_path / "printed.txt").read_text()
    assert {cell["state"] for cell in cells(tmp_path / "sweep")} == {"running"}
    assert "died" in sweep_command("status", tmp_path / "sweep").stdout
    resumed = sweep_command("resume", tmp_path / "sweep", env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert resumed.returncode == 0, resumed.stderr
    counts = times_computed(tmp_path / "out")
    assert set(counts.values()) == {1}
    assert set(before) < set(counts)
    assert table(tmp_path / "sweep").equals(table(undisturbed / "sweep"))
    assert {cell["state"] for cell in cells(tmp_path / "sweep")} == {"finished"}
    assert max(cell["starts"] for cell in cells(tmp_path / "sweep")) == 2


def test_a_failing_cell_is_said_and_the_others_go_on(tmp_path):
    """One cell names a checkpoint that is not there."""
    paths = f"model.path=checkpoints/pocket,{tmp_path / 'nowhere'}"
    assert start(tmp_path, "pruner=random", paths, "limit=9").wait(timeout=300) == 1
    assert [cell["state"] for cell in cells(tmp_path / "sweep")] == ["finished", "failed"]
    shown = sweep_command("table", tmp_path / "sweep")
    assert shown.returncode == 1
    assert "there is no such folder" in shown.stdout + shown.stderr
    assert "btp.sweep resume" in shown.stderr
    assert len(table(tmp_path / "sweep")) == 4


def test_the_folder_of_another_sweep_is_refused(undisturbed):
    """Cells of the same number would be mixed."""
    more = f"hydra.sweep.dir={undisturbed / 'sweep'}"
    process = start(undisturbed, "pruner=random,fastv", "limit=9", more)
    assert process.wait(timeout=60) == 1
    assert "is the folder of another sweep: python run.py -m" in (undisturbed / "printed.txt").read_text()
    assert [cell["starts"] for cell in cells(undisturbed / "sweep")] == [1] * 4


def test_what_is_no_sweep_is_refused(tmp_path):
    for do in ("status", "resume", "table"):
        found = sweep_command(do, tmp_path)
        assert found.returncode == 2
        assert "holds no sweep.json, so it is no sweep's folder" in found.stderr
