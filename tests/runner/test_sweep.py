"""A sweep of several cells at once, killed, looked at, resumed: the same table, and no sample twice."""

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import psutil
import pytest
from jobs import composed
from sweeps import cells, start, sweep_command, table, times_computed

import btp.sweep
from btp.runner.run_identity import is_settled
from btp.runner.sweeps.cells import FINISHED, OPEN, Cells
from btp.runner.workers.launch import Outcome

pytestmark = pytest.mark.long

CELLS, COUNT = ("pruner=random,diversity", "budget.share=0.4", "limit=9"), 2


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The sweep in order."""
    home = tmp_path_factory.mktemp("undisturbed")
    process = start(home, *CELLS)
    assert process.wait(timeout=600) == 0, process.printed()
    return home


def test_cells_are_noted(undisturbed, capsys):
    noted = cells(undisturbed / "sweep")
    assert [cell["state"] for cell in noted] == ["finished"] * COUNT
    assert [cell["starts"] for cell in noted] == [1] * COUNT
    assert btp.sweep.main(["status", str(undisturbed / "sweep")]) == 0
    assert f"{COUNT} finished" in capsys.readouterr().out


def side_by_side(home):
    """The sweep with two cells at a time."""
    return start(home, *CELLS, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")


def one_by_one(home):
    return start(home, *CELLS)


@pytest.mark.parametrize("begin", [one_by_one, pytest.param(side_by_side, marks=pytest.mark.slow)])
def test_killed_and_resumed(undisturbed, tmp_path, capsys, begin):
    """Killed hard with all that it started as soon as answers lie on disk."""
    process = begin(tmp_path)
    until = time.monotonic() + 200
    while not times_computed(tmp_path / "out") and time.monotonic() < until:
        time.sleep(0.02)
    for child in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        child.send_signal(signal.SIGKILL)
    process.wait()
    said, until = "running", time.monotonic() + 30
    while "running" in said and time.monotonic() < until:  # a worker that had just begun dies a moment after its parent
        time.sleep(0.5)
        assert btp.sweep.main(["status", str(tmp_path / "sweep")]) == 1
        said = " ".join(capsys.readouterr().out.split())
    before = times_computed(tmp_path / "out")
    assert before
    assert {cell["state"] for cell in cells(tmp_path / "sweep")} == {"running"}
    open_cells = COUNT - len(cells(tmp_path / "sweep"))
    assert f"{COUNT - open_cells} died" + (f", {open_cells} open" if open_cells else "") in said
    assert btp.sweep.main(["table", str(tmp_path / "sweep")]) == 1
    missing = capsys.readouterr().err
    assert "not finish" in missing
    assert not open_cells or f"{open_cells} cell(s) not begun" in missing
    assert sweep_command("resume", tmp_path / "sweep").returncode == 0
    counts = times_computed(tmp_path / "out")
    assert set(counts.values()) == {1}
    assert set(before) < set(counts)
    assert table(tmp_path / "sweep").equals(table(undisturbed / "sweep"))
    assert {cell["state"] for cell in cells(tmp_path / "sweep")} == {"finished"}
    assert max(cell["starts"] for cell in cells(tmp_path / "sweep")) == 2


def test_finished_cells_are_recognised_without_a_worker(undisturbed, tmp_path):
    """Where the sweep says that they are finished, and code, checkpoint and files are what they were: no torch."""
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
    before = times_computed(undisturbed / "out")
    resumed = sweep_command("resume", undisturbed / "sweep", env=env)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert resumed.stdout.count("this run is finished") == COUNT
    assert times_computed(undisturbed / "out") == before
    worker = subprocess.run([sys.executable, "-m", "btp.runner.run"], env=env, capture_output=True, text=True)
    assert "torch was imported" in worker.stderr, "the test can fail"


def test_what_has_changed_is_left_to_a_worker(undisturbed):
    """A run is settled where nothing is left to do for it: not where the words, the code or the log are others."""
    words = [word for word in cells(undisturbed / "sweep")[0]["words"].split() if "controls" not in word]
    config = composed(*words)
    run = is_settled(config)
    assert run is not None
    assert str(run) == cells(undisturbed / "sweep")[0]["folder"]
    for change in ({"resume": False}, {"limit": 17}, {"logger": composed("logger=offline")["logger"]}):
        assert is_settled(config | change) is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("btp.runner.run_identity.code", lambda *names: "another")
        assert is_settled(config) is None


def test_a_failing_cell_is_said_and_the_others_go_on(tmp_path, capsys):
    """One cell names a checkpoint that is not there."""
    paths = f"model.path=checkpoints/pocket_mini,{tmp_path / 'nowhere'}"
    assert start(tmp_path, "pruner=random", paths, "limit=9").wait(timeout=300) == 1
    assert [cell["state"] for cell in cells(tmp_path / "sweep")] == ["finished", "failed"]
    assert btp.sweep.main(["table", str(tmp_path / "sweep")]) == 1
    shown = capsys.readouterr()
    assert "there is no such folder" in shown.out + shown.err
    assert "btp.sweep resume" in shown.err
    assert len(table(tmp_path / "sweep")) == 4


def test_the_folder_of_another_sweep_is_refused(undisturbed):
    """Cells of the same number would be mixed."""
    before, more = cells(undisturbed / "sweep"), f"hydra.sweep.dir={undisturbed / 'sweep'}"
    process = start(undisturbed, "pruner=random,fastv", "limit=9", more)
    assert process.wait(timeout=60) == 1
    assert "is the folder of another sweep: python run.py -m" in process.printed()
    assert cells(undisturbed / "sweep") == before


@pytest.mark.parametrize(
    ("word", "same"),
    [
        ("hydra/launcher=joblib", True),
        ("hydra.launcher.n_jobs=2", True),
        ("hydra.sweeper.n_trials=9", True),
        ("hydra.sweeper.params.stages='1,2'", False),
        ("hydra/sweeper=optuna", False),
        ("limit=3", False),
    ],
)
def test_which_words_make_another_sweep(tmp_path, word, same):
    """Where cells run may change, and how many a search proposes; what they are may not."""
    Cells(tmp_path).open(["-m", "pruner=random,fastv"])
    with nullcontext() if same else pytest.raises(ValueError, match="is the folder of another sweep"):
        Cells(tmp_path).open(["-m", "pruner=random,fastv", word])


def test_what_is_no_sweep_is_refused(tmp_path, capsys):
    for do in ("status", "resume", "table"):
        assert btp.sweep.main([do, str(tmp_path)]) == 2
        assert "holds no sweep.json, so it is no sweep's folder" in capsys.readouterr().err


def test_cells_that_have_not_begun_are_open(tmp_path):
    """Also those that are not proposed yet; a sweep of an older release says nothing of them."""
    sweep = Cells(tmp_path)
    sweep.open(["-m", "a=1,2"], planned=["a=1", "a=2", ""])
    with sweep.running(1, "a=2") as note:
        note.outcome = Outcome(0, folder="there")
    assert [(cell.number, cell.words, cell.state) for cell in sweep.read()] == [
        (0, "a=1", OPEN),
        (1, "a=2", FINISHED),
        (2, "", OPEN),
    ]
    (tmp_path / "planned.json").unlink()
    assert [cell.number for cell in sweep.read()] == [1]


def test_a_sweep_that_was_refused_leaves_nothing(tmp_path):
    """Unless a cell has begun, or somebody keeps other things there."""
    for name, begun in (("empty", False), ("kept", False), ("begun", True)):
        sweep = Cells(tmp_path / name)
        sweep.open(["-m", "a=1,2"], planned=["a=1", "a=2"])
        if begun:
            with sweep.running(0, "a=1"):
                pass
        if name == "kept":
            (tmp_path / name / "mine.txt").write_text("mine")
        sweep.withdraw()
    assert not (tmp_path / "empty").exists()
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["mine.txt"]
    assert Cells(tmp_path / "begun").command() == ["-m", "a=1,2"]
