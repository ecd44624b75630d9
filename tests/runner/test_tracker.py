"""What W&B recorded offline, read back from its own log."""

import json

import pandas as pd
import pytest
import yaml
from jobs import job
from offline import load

from btp.runner.sweeps.outcomes import corpus, outcomes
from btp.runner.tracking.wandb_run import attempt

pytestmark = pytest.mark.long

SHORT = ("limit=9", "calibration.samples=16")


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def recorded(output):
    """A run logged offline: its folder and the log's content."""
    run = job(output, "logger=offline", *SHORT, "logger.tags=[mine]")
    (log,) = logs(run)
    return run, load(log)


def logs(run):
    return sorted(run.glob("wandb/offline-run-*/*.wandb"))


def table(run, key):
    """A logged table: columns and rows, as its artifact holds them."""
    (file,) = run.glob(f"wandb/offline-run-*/files/media/table/{key}_*.table.json")
    return json.loads(file.read_text())


def test_group_and_tags_come_from_the_choices(recorded):
    _, log = recorded
    assert log["run"]["run_group"] == "pocket_mini/pocketvqa"
    assert log["run"]["job_type"] == "btp"
    assert {"pocket_mini", "btp", "pocketvqa", "share=0.22", "mine"} <= set(log["run"]["tags"])
    assert log["config"]["stages"] == 3
    assert log["config"]["pruner"]["name"] == "btp"


def test_summary_holds_metrics_by_ability_and_cost(recorded):
    run, log = recorded
    cost = json.loads((run / "cost.json").read_text())
    found = flat(log["summary"])
    assert found["tokens_avg"] == pytest.approx(0.22 * 144, abs=0.5)
    assert {"btp/relation", "unpruned/digit", "btp/agreement", "accuracy", "relation"} <= set(found)
    assert found["cost/btp/kv_mib"] == found["cost/kv_mib"] == pytest.approx(cost["btp"]["kv_mib"])
    assert found["cost/unpruned/kv_mib"] == pytest.approx(cost["unpruned"]["kv_mib"])
    told = {key: found[key] for key in outcomes(run)}
    assert told == pytest.approx(outcomes(run), nan_ok=True)


def test_samples_overlays_and_artifacts_are_there(recorded):
    run, log = recorded
    keys = set().union(*(row.keys() for row in log["history"]))
    assert {"samples", "overlays", "report", "accuracy", "figures/tokens_per_layer"} <= keys
    assert any("media/images" in f for f in log["files"])
    assert log["exit"] == 0
    artifacts = {kind: (name, files) for kind, name, files in log["artifacts"] if kind != "run_table"}
    made = yaml.safe_load((run / "calibration.yaml").read_text())["identity"]
    assert artifacts["calibration"] == (f"calibration-pocket_mini-{made}", ["calibration.yaml"])
    assert log["config"]["artifacts"]["calibration"]["made_here"] is True
    name, files = artifacts["result"]
    assert name == f"result-{run.name}"
    assert {"samples.parquet", "cost.json", "report.html", "run.json", "config.yaml", "calibration.yaml"} <= set(files)


def test_the_sample_table_has_all_rows_and_the_pictures_of_the_report(recorded):
    run, log = recorded
    found = table(run, "samples")
    frame = pd.read_parquet(run / "samples.parquet")
    assert len(found["data"]) == len(frame)
    rows = [dict(zip(found["columns"], row, strict=True)) for row in found["data"]]
    shown = {path.stem for path in (run / "pictures").glob("*.png")}
    assert {row["sample"] for row in rows if row["picture"] is not None} == shown
    count = len(shown) * frame["arm"].nunique()
    assert all(row["picture"] is not None and row["kept"] is not None for row in rows[:count])
    (files,) = (files for kind, name, files in log["artifacts"] if name.endswith("-samples"))
    assert sum(file.endswith(".png") for file in files) == 2 * len(shown)


def test_a_finished_run_is_logged_once(recorded, output, capsys):
    run, _ = recorded
    before = logs(run)
    assert job(output, "logger=offline", *SHORT, "logger.tags=[mine]") == run
    assert "this run is finished" in capsys.readouterr().out
    assert logs(run) == before
    assert json.loads((run / "run.json").read_text())["wandb"]["id"] == before[0].stem.removeprefix("run-")


@pytest.mark.slow
def test_what_was_not_logged_is_logged_at_its_next_start(recorded, output):
    """The second run finds the calibration of the first: it says so, and does not log it again."""
    words = (*SHORT, "budget.share=0.4", "overlays=0", "cost.enabled=false")
    run = job(output, "logger=none", *words)
    assert not logs(run)
    assert job(output, "logger=offline", "logger.group=mine", *words) == run
    (log,) = map(load, logs(run))
    assert log["run"]["run_group"] == "mine"
    found = log["config"]["artifacts"]["calibration"]
    assert not found["made_here"]
    assert found["name"] == recorded[1]["config"]["artifacts"]["calibration"]["name"]
    assert "calibration" not in {kind for kind, _, _ in log["artifacts"]}
    (result,) = (files for kind, _, files in log["artifacts"] if kind == "result")
    assert "calibration.yaml" in result


@pytest.mark.slow
def test_a_run_computed_anew_replaces_its_unsent_record(recorded, output):
    words = (*SHORT, "budget.share=0.4", "overlays=0", "cost.enabled=false")
    run = job(output, "logger=offline", *words)
    before = logs(run)
    assert job(output, "logger=offline", "resume=false", *words) == run
    assert len(logs(run)) == len(before) == 1
    assert logs(run) != before


def test_what_goes_wrong_is_said_and_kept(tmp_path, capsys):
    def log():
        raise OSError("no space")

    attempt(log, tmp_path, "this run")
    said = capsys.readouterr().err
    assert "W&B: this run could not be logged: no space. Its results are complete" in said
    assert "OSError: no space" in (tmp_path / "wandb-error.log").read_text()
    with pytest.raises(OSError, match="no space"):
        attempt(log, tmp_path, "this run", debug=True)


def test_metrics_of_the_task_are_flat():
    found = corpus({"btp": {"all": {"f1": 0.5, "note": "x"}, "by_ability": {"yes": {"f1": 1.0}}}})
    assert found == {"btp/metric/f1": 0.5, "btp/metric/f1/yes": 1.0}


def flat(node, prefix=""):
    """Nested mappings as one, keys joined by a slash."""
    out = {}
    for key, value in node.items():
        out |= flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def test_online_without_a_login_is_refused_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(ValueError, match="no login is found"):
        job(tmp_path, "logger=wandb")
    assert not list(tmp_path.glob("pocket_mini-*/samples.parquet"))
