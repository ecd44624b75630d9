"""The W&B sweep of experiments/wandb_sweep.yaml: the command line that an agent makes of it, run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jobs import ROOT
from wandb_server import serving

SWEEP = yaml.safe_load((ROOT / "experiments" / "wandb_sweep.yaml").read_text())


def chosen(parameter):
    """One of the values that a sweep may give."""
    return parameter.get("value", parameter.get("values", [parameter.get("min")])[0])


def agents_command(sweep):
    """As W&B's agent fills the command in, with its own functions."""
    # takes two seconds, which whoever collects tests would pay too
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    args = {name: {"value": chosen(parameter)} for name, parameter in sweep["parameters"].items()}
    known = create_sweep_command_args({"args": args})
    known |= {"interpreter": [sys.executable], "program": [sweep["program"]], "env": ["/usr/bin/env"]}
    words = []
    for word in create_sweep_command(list(sweep["command"])):
        words += known[word[2:-1]] if word.startswith("${") else [word]
    return words


@pytest.mark.slow
def test_an_agents_command_runs_and_answers_the_sweep(tmp_path):
    small = ["experiment=smoke", "trainer=cpu", "limit=9", "overlays=0", "cost.enabled=false", f"output={tmp_path}"]
    words = agents_command(SWEEP)
    assert words[:3] == ["/usr/bin/env", sys.executable, "run.py"]
    assert "pruner=btp" in words
    with serving() as server:
        env = server.environment(os.environ) | {"OMP_NUM_THREADS": "1"}
        for given in ("agents1", "agents2"):  # the second proposes what is finished already, and gets its answer too
            env |= {"WANDB_SWEEP_ID": "s1", "WANDB_RUN_ID": given, "WANDB_PROJECT": "theirs", "WANDB_ENTITY": "me"}
            done = subprocess.run([*words, *small], cwd=ROOT, env=env, capture_output=True, text=True, timeout=200)
            assert done.returncode == 0, done.stdout + done.stderr
            assert f"/me/theirs/runs/{given}" in done.stdout
        buckets = server.variables("UpsertBucket")
        assert {bucket["name"] for bucket in buckets} == {"agents1", "agents2"}
        assert {b["name"]: b["sweep"] for b in buckets if b.get("sweep")} == {"agents1": "s1", "agents2": "s1"}
        found = [row[SWEEP["metric"]["name"]] for row in server.history if SWEEP["metric"]["name"] in row]
        assert len(found) == 2
        assert found[0] == found[1]
    (run,) = Path(tmp_path).glob("pocket_mini-btp-*")
    assert json.loads((run / "run.json").read_text())["state"] == "finished"
