"""logger=csv: a table on disk, a row for each run; and what a tracker needs, none of it wandb."""

import subprocess
import sys

import pandas as pd
import pytest
from jobs import ROOT, composed, job

from btp.runner.sweeps.outcomes import outcomes
from btp.runner.tracking.tracker import NoTracker, tracker_of

QUICK = ("limit=9", "overlays=0", "cost.enabled=false", "calibration.samples=8")


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """Two runs in one table, the first logged twice."""
    home = tmp_path_factory.mktemp("csv")
    words = (*QUICK, "logger=csv", f"logger.file={home / 'runs.csv'}")
    first = job(home / "out", *words, "pruner=random")
    again = job(home / "out", *words, "pruner=random")
    second = job(home / "out", *words, "pruner=random", "budget.share=0.4")
    assert first == again != second
    return home / "runs.csv", (first, second)


@pytest.mark.long
def test_each_run_has_one_row_with_its_numbers(logged):
    file, folders = logged
    table = pd.read_csv(file)
    assert list(table["run"]) == [str(folder) for folder in folders]
    for row, folder in zip(table.to_dict("records"), folders, strict=True):
        assert row["model"] == "pocket_mini"
        assert {key: row[key] for key in outcomes(folder)} == pytest.approx(outcomes(folder))


def test_a_file_that_is_no_table_of_runs_is_refused_and_kept(tmp_path):
    other = tmp_path / "notes.csv"
    other.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"logger\.file is .*notes\.csv, which is no table of runs"):
        tracker_of(composed("logger=csv", f"logger.file={other}")["logger"]).check()
    assert other.read_text() == "a,b\n1,2\n"


def test_a_tracker_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"logger\.tracker is 'nowhere\.Mine', which is no class"):
        tracker_of({"name": "mine", "tracker": "nowhere.Mine"})


def test_a_name_that_is_another_trackers_is_refused():
    """The name alone changes nothing about where runs are logged."""
    message = r"logger\.name is 'csv', but logger\.tracker is .*NoTracker, which goes by none"
    with pytest.raises(ValueError, match=message):
        tracker_of(composed("logger=none", "logger.name=csv")["logger"])


def test_none_logs_nothing(tmp_path):
    tracker = tracker_of(composed("logger=none")["logger"])
    assert isinstance(tracker, NoTracker)
    assert tracker.is_logged(tmp_path, "abc")


@pytest.mark.long
def test_no_wandb_without_it():
    """Neither the module that runs jobs nor these trackers import wandb."""
    nodes = [composed(f"logger={logger}")["logger"] for logger in ("none", "csv")]
    code = (
        "import sys; import btp.runner.run; from btp.runner.tracking.tracker import tracker_of; "
        f"[tracker_of(node) for node in {nodes!r}]; sys.exit('wandb' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
