"""Odd but right inputs from end to end: a locale of ASCII, folders and ids of any script, other columns, -O."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest
from hydra.utils import instantiate
from jobs import ROOT, command, composed, job
from sweeps import cells, sweep_command

from btp.cli.command_words import quoted
from btp.explain import main as explain
from btp.runner.run_identity import is_settled

ODD = 'größe a[1],b=c\'d "x" 日本'
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
IDS = ["字" * 200 + str(i) for i in range(3)]
QUICK = ["experiment=smoke", "limit=3", "trainer=cpu", "trainer.workers=0", "logger=none", "cost.enabled=false"]
QUICK += ["pruner=attention", "schedule=uniform", "overlays=2"]
QUICK += [f"~pruner@controls.{name}" for name in ("random", "downsampled", "no_image")]


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A sweep of one cell below such a folder, in a locale of ASCII; its flag stands behind its words."""
    home = tmp_path_factory.mktemp("odd") / ODD
    (home / "data").mkdir(parents=True)
    task = instantiate(composed()["task"]["dataset"])
    lines = []
    for i, own in enumerate(IDS):
        task[i].images[0].save(home / "data" / f"bild-ä{i}.PNG", "PNG")
        row = {"id": own, "image": f"bild-ä{i}.PNG", "text": f"{task[i].question}\u2028\x85", "label": "größe"}
        lines.append(json.dumps(row, ensure_ascii=False))
    (home / "data" / "FRAGEN.JSONL").write_text("\n".join(lines), encoding="utf-8")
    words = ["task=vqa_folder", "task.dataset.reader.columns={question: text, answer: label}"]
    words += [quoted("task.path", home / "data"), quoted("output", home / "out")]
    words += [quoted("hydra.sweep.dir", home / "sweep")]
    process = command(*QUICK, "budget.share=0.4", *words, "-m", env=os.environ | ASCII, encoding="utf-8")
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 0, said
    return home, said


@pytest.mark.slow
def test_everything_is_there(odd):
    """Run, pictures, overlays and comparison; the screen shows ASCII alone."""
    home, said = odd
    assert said.isascii()
    assert "Traceback" not in said
    (cell,) = cells(home / "sweep")
    (run,) = (path.parent for path in (home / "out").glob("*/run.json"))
    assert cell["folder"] == str(run)
    assert (home / "sweep" / "comparison.html").is_file()
    frame = pd.read_parquet(run / "samples.parquet")
    assert frame["sample"].nunique() == 3
    assert set(frame["reference"]) == {"größe"}
    assert all(question.endswith("\u2028\x85") for question in frame["question"])
    for folder in ("pictures", "overlays"):
        assert len(list((run / folder).glob("*.png"))) == 2


@pytest.mark.slow
def test_a_sample_is_found_by_the_id_of_its_table(odd, tmp_path):
    home, _ = odd
    (run,) = (path.parent for path in (home / "out").glob("*/run.json"))
    assert explain([str(run), IDS[1], "--page", str(tmp_path / ODD / "life.html")]) == 0
    assert (tmp_path / ODD / "life.html").is_file()


@pytest.mark.slow
def test_its_sweep_is_found_and_resumed(odd):
    """By the command that it noted, in the folder that it lies in."""
    home, _ = odd
    shown = sweep_command("status", home / "sweep")
    assert shown.returncode == 0, shown.stderr
    assert "1 finished" in shown.stdout
    resumed = sweep_command("resume", home / "sweep")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "this run is finished" in resumed.stdout
    assert len(cells(home / "sweep")) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("level", "devices"), [("1", 1), ("2", 1), ("2", 2)])
def test_optimised_python_computes_the_same(tmp_path, level, devices):
    """Without asserts, and without docstrings; in each process of a run."""
    env = os.environ | {"PYTHONOPTIMIZE": level, "OMP_NUM_THREADS": "1"}
    words = ["budget.share=0.4", f"trainer.devices={devices}", f"output={tmp_path / 'optimised'}"]
    process = command(*QUICK, *words, env=env)
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 0, said
    runs = [
        next((tmp_path / "optimised").glob("*/run.json")).parent,
        job(tmp_path / "plain", *QUICK[1:], "budget.share=0.4"),
    ]
    for name in ("samples.parquet", "trace.parquet"):
        pd.testing.assert_frame_equal(*[pd.read_parquet(run / name) for run in runs])


def test_a_run_may_have_no_control(tmp_path):
    """All were taken out, and the group is gone with them."""
    config = composed(*QUICK, f"output={tmp_path}")
    assert "controls" not in config
    assert is_settled(config) is None


@pytest.mark.parametrize(
    "name", ["sweep", *(pytest.param(n, marks=pytest.mark.slow) for n in ("explain", "study", "dashboard", "report"))]
)
def test_commands_explain_themselves_without_docstrings(name):
    shown = subprocess.run(
        [sys.executable, "-OO", "-m", f"btp.{name}", "--help"], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    assert shown.returncode == 0, shown.stderr
    assert "usage:" in shown.stdout
