"""What W&B recorded offline, read back from its own log."""

import json

import pytest
from jobs import job
from offline import load


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run logged offline: its folder and the log's content."""
    output = tmp_path_factory.mktemp("outputs")
    run = job(output, "logger=offline", "limit=9", "logger.tags=[mine]")
    (log,) = run.glob("wandb/offline-run-*/*.wandb")
    return run, load(log)


def test_group_and_tags_come_from_the_choices(recorded):
    _, log = recorded
    assert log["run"]["run_group"] == "pocket/pocketvqa"
    assert log["run"]["job_type"] == "btp"
    assert {"pocket", "btp", "pocketvqa", "share=0.22", "mine"} <= set(log["run"]["tags"])
    assert log["config"]["stages"] == 3
    assert log["config"]["pruner"]["name"] == "btp"


def test_summary_holds_metrics_by_ability_and_cost(recorded):
    run, log = recorded
    cost = json.loads((run / "cost.json").read_text())
    assert log["summary"]["tokens_avg"] == pytest.approx(0.22 * 144, abs=0.5)
    assert {"btp/relation", "unpruned/digit", "btp/agreement", "accuracy"} <= set(flat(log["summary"]))
    assert flat(log["summary"])["cost/btp/kv_mib"] == pytest.approx(cost["btp"]["kv_mib"])


def test_samples_overlays_and_the_artefact_are_there(recorded):
    _, log = recorded
    keys = set().union(*(row.keys() for row in log["history"]))
    assert {"samples", "overlays", "report"} <= keys
    assert any(kind == "calibration" and files for kind, _, files in log["artifacts"])
    assert any("media/images" in f for f in log["files"])
    assert log["exit"] == 0


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
    assert not list(tmp_path.glob("pocket-*/samples.parquet"))
