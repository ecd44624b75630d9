"""The W&B run of a sweep: comparison, plots, its cells' runs; one run however often the sweep goes on."""

import json
from pathlib import Path

import pytest
from jobs import composed, typed
from offline import load
from sweeps import cells, sweep_command

import btp.sweep
from btp.models.loading.checkpoint import find_checkpoint
from btp.runner.tracking.groups import grouped, logger_of, sweep_id

QUICK = ("-m", "experiment=smoke", "trainer=cpu", "limit=9", "overlays=0", "cost.enabled=false", "pruner=random")


def start(home, *more):
    return typed(*QUICK, f"output={home / 'out'}", f"hydra.sweep.dir={home / 'mine'}", *more)


def record(folder):
    """The only W&B record of a folder: its content and its tables' cells."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    tables = {}
    for table in file.parent.glob("files/media/table/*.table.json"):
        content = json.loads(table.read_text())
        tables[table.name.split("_")[0]] = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
    return load(file), tables


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """A sweep with a cell whose checkpoint comes late: what was logged before, and after it went on."""
    home = tmp_path_factory.mktemp("home")
    late = home / "late"
    code, printed = start(home, "logger=offline", f"model.path=checkpoints/pocket_mini,{late}")
    assert code == 1, printed
    before = record(home / "mine")
    late.symlink_to(find_checkpoint(composed("model=pocket_mini")["model"]).resolve())
    resumed = sweep_command("resume", home / "mine")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    return home, before, record(home / "mine")


def run_of_cells(home):
    """Both cells come to the same run: their checkpoints are the same."""
    (folder,) = {cell["folder"] for cell in cells(home / "mine")}
    return Path(folder)


@pytest.mark.slow
def test_cells_are_grouped_by_the_sweep(twice):
    home, _, _ = twice
    log, _ = record(run_of_cells(home))
    assert log["run"]["run_group"] == "mine"
    assert log["run"]["job_type"] == "random"
    assert log["config"]["logger"]["sweep"] == sweep_id(home / "mine")


@pytest.mark.slow
def test_the_sweep_has_a_run_with_its_table_and_plots(twice):
    home, _, (log, tables) = twice
    assert (log["run"]["run_group"], log["run"]["job_type"], log["exit"]) == ("mine", "sweep", 0)
    assert {row["method"] for row in tables["comparison"]} >= {"random", "unpruned"}
    keys = set().union(*(row.keys() for row in log["history"]))
    assert {"comparison", "comparison_page", "cells"} <= keys
    assert {f"plots/{file.stem}" for file in (home / "mine" / "figures").glob("*.png")} <= keys
    (files,) = (files for kind, _, files in log["artifacts"] if kind == "comparison")
    assert {"comparison.csv", "comparison.html"} <= set(files)


@pytest.mark.slow
def test_going_on_updates_the_same_run(twice):
    home, (first, old), (second, new) = twice
    assert first["run"]["run_id"] == second["run"]["run_id"] == sweep_id(home / "mine")
    assert [row["state"] for row in old["cells"]] == ["finished", "failed"]
    assert "there is no such folder" in old["cells"][1]["reason"]
    assert [row["state"] for row in new["cells"]] == ["finished", "finished"]
    identity = json.loads((run_of_cells(home) / "run.json").read_text())["identity"]
    assert {row["run"] for row in new["cells"]} == {identity}
    assert set(second["config"]["cells"]) == {identity}


@pytest.mark.slow
def test_looking_at_the_table_logs_nothing_more(twice):
    home, _, _ = twice
    before = list((home / "mine").glob("wandb/offline-run-*"))
    assert btp.sweep.main(["table", str(home / "mine")]) == 0
    assert list((home / "mine").glob("wandb/offline-run-*")) == before


def test_the_group_of_the_config_goes_first_and_none_is_none(tmp_path):
    assert grouped({"name": "none"}, tmp_path) == {"name": "none"}
    assert logger_of(tmp_path) is None
    found = grouped({"name": "wandb", "mode": "offline", "group": "given"}, tmp_path)
    assert found["group"] == "given"
    assert logger_of(tmp_path) == found


def test_sweeps_of_one_name_are_runs_of_their_own(tmp_path):
    ids = set()
    for began in ("one", "two"):
        folder = tmp_path / began / "same"
        folder.mkdir(parents=True)
        (folder / "sweep.json").write_text(json.dumps({"words": ["-m"], "began": began}))
        ids.add(sweep_id(folder))
    assert len(ids) == 2
