"""The W&B workspace that `python -m btp.dashboard` lays out, as it is written where it cannot be published."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest
from jobs import ROOT
from wandb_server import KEY, serving

pytest.importorskip("wandb_workspaces", reason="pip install -r requirements-wandb.txt")


def dashboard(tmp_path, *words, **more):
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    env = clean | {"NETRC": str(tmp_path / "none"), "PYTHONPATH": str(ROOT)} | more
    command = [sys.executable, "-m", "btp.dashboard", "mine", *words]
    return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)


def panels(file):
    """Section -> (kind, settings) of its panels."""
    sections = json.loads(file.read_text())["spec"]["section"]["panelBankConfig"]["sections"]
    return {part["name"]: [(p["viewType"], p["config"]) for p in part["panels"]] for part in sections}


def test_without_a_login_the_layout_is_written_and_that_is_said(tmp_path):
    run = tmp_path / "outputs" / "a-run"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    pd.DataFrame({"ability": ["relation", "digit", "digit"]}).to_parquet(run / "samples.parquet")
    done = dashboard(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "layout: dashboard.json" in done.stdout
    assert "not published: no W&B login is found" in done.stdout
    assert "The same command publishes it" in done.stdout
    found = panels(tmp_path / "dashboard.json")
    kind, first = found["Accuracy against tokens"][0]
    assert (kind, first["xAxis"], first["yAxis"]) == ("Scatter Plot", "summary:tokens_avg", "summary:accuracy")
    assert [settings["metrics"] for _, settings in found["By ability"]] == [["digit"], ["relation"]]
    assert {settings["groupBy"] for _, settings in found["By ability"]} == {"pruner.value.name"}
    assert ["cost/kv_mib"] in [settings["metrics"] for _, settings in found["Cost"]]
    assert found["Kept tokens"][0][1]["mediaKeys"] == ["overlays"]
    assert '"samples"' in json.dumps(found["Samples"][0][1])
    assert '"comparison"' in json.dumps(found["Sweeps"][0][1])


@pytest.mark.slow
def test_abilities_can_be_named(tmp_path):
    done = dashboard(tmp_path, "--ability", "color", "--entity", "team", "--out", "deep/er/layout.json")
    assert done.returncode == 0, done.stderr
    file = tmp_path / "deep" / "er" / "layout.json"
    assert [settings["metrics"] for _, settings in panels(file)["By ability"]] == [["color"]]
    assert json.loads(file.read_text())["entity"] == "team"


@pytest.mark.slow
def test_without_a_network_too(tmp_path):
    with serving() as server:
        gone = server.address
    done = dashboard(tmp_path, "--entity", "team", WANDB_BASE_URL=gone, WANDB_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    assert f"not published: {gone} cannot be reached" in done.stdout
    assert (tmp_path / "dashboard.json").is_file()


@pytest.mark.long
def test_with_a_login_it_is_published(tmp_path):
    with serving() as server:
        done = dashboard(tmp_path, "--entity", "team", **server.environment({}))
        sent = [v for name, v in server.asked if "view" in name.lower() and "viewer" not in name.lower()]
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mine" in done.stdout
    assert "not published" not in done.stdout
    assert any("cost/kv_mib" in json.dumps(v) for v in sent)


def test_without_the_library_what_to_install_is_said(tmp_path):
    (tmp_path / "wandb_workspaces").mkdir()
    (tmp_path / "wandb_workspaces" / "__init__.py").write_text("raise ImportError")
    done = dashboard(tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert done.returncode == 2
    assert "pip install -r requirements-wandb.txt" in done.stderr
