"""W&B over a network: to a server on this machine, to none, and later from disk."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jobs import command, job
from offline import load
from wandb_server import KEY, serving

pytestmark = pytest.mark.long

WORDS = ("experiment=smoke", "trainer=cpu", "limit=9", "overlays=2", "cost.enabled=false")


def run(env, output, *more):
    """run.py as a user starts it: its exit code and what it printed."""
    process = command(*WORDS, f"output={output}", *more, env=env)
    printed, _ = process.communicate(timeout=200)
    return process.returncode, printed


@pytest.fixture
def dead():
    """An address of this machine where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    return clean | {"WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_API_KEY": KEY}


@pytest.mark.slow
def test_an_offline_run_is_sent_later_with_nothing_lost(tmp_path):
    folder = job(tmp_path / "out", "logger=offline", "pruner=random", "limit=9", "overlays=2", "cost.enabled=false")
    (record,) = folder.glob("wandb/offline-run-*")
    (file,) = record.glob("*.wandb")
    wanted = load(file)
    with serving() as server:
        sync = [sys.executable, "-m", "wandb", "sync", str(record)]
        elsewhere = server.environment(os.environ) | {"HOME": str(tmp_path)}
        done = subprocess.run(sync, env=elsewhere, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(server.history) == len(wanted["history"])
    assert {key for row in server.history for key in row} == {key for row in wanted["history"] for key in row}
    (bucket,) = {v["name"] for v in server.variables("UpsertBucket")}
    assert bucket == wanted["run"]["run_id"]
    assert server.variables("UpsertBucket")[0]["groupName"] == "pocket_mini/pocketvqa"
    assert {name for _, name, _ in wanted["artifacts"]} == set(server.artifacts)
    sent = {}
    for name, content in server.uploads:
        sent.setdefault(name, []).append(content)
    for name in ("samples.parquet", "report.html", "layers.json"):
        assert (folder / name).read_bytes() in sent[name], name
    pictures = [file.read_bytes() for kind in ("pictures", "overlays") for file in (folder / kind).glob("*.png")]
    assert pictures
    everything = {content for contents in sent.values() for content in contents}
    assert set(pictures) <= everything
    assert {file for _, _, files in wanted["artifacts"] for file in files} <= set(sent)


@pytest.mark.slow
def test_online_a_run_uses_the_calibration_that_another_made(tmp_path):
    with serving() as server:
        env = server.environment(os.environ)
        code, printed = run(env, tmp_path, "logger=wandb")
        assert code == 0, printed
        assert f"W&B: {server.address}/me/btp/runs/" in printed
        made = {name: kind for name, kind in server.artifacts.items() if kind != "run_table"}
        assert sorted(made.values()) == ["calibration", "result"]
        assert not server.variables("UseArtifact")
        code, printed = run(env, tmp_path, "logger=wandb", "budget.share=0.4")
        assert code == 0, printed
        (used,) = server.variables("UseArtifact")
        (calibration,) = (name for name, kind in made.items() if kind == "calibration")
        assert used["artifactID"] == calibration
        collections = [v["input"]["artifactCollectionName"] for v in server.variables("CreateArtifact")]
        assert collections.count(calibration) == 1
        assert server.history[0]["tokens_avg"] == pytest.approx(0.22 * 144, abs=0.5)


@pytest.mark.slow
def test_a_dead_network_stops_and_slows_nothing(tmp_path, dead):
    code, printed = run(dead, tmp_path, "logger=wandb", "pruner=none")
    assert code == 0, printed
    assert "W&B: logged to disk, since the server does not take it" in printed
    assert "cannot be reached (ConnectionError)" in printed
    (folder,) = tmp_path.glob("pocket_mini-none-*")
    (record,) = folder.glob("wandb/*run-*/*.wandb")
    assert record.parent.name.startswith("offline-run-")
    assert f"wandb sync {folder}/wandb/offline-run-*-{record.stem.removeprefix('run-')}" in printed
    assert load(record)["exit"] == 0
    assert load(record)["config"]["pruner"]["name"] == "none"


def test_a_network_that_dies_on_the_way_is_waited_for_no_longer_than_said(tmp_path):
    """The server goes away between start and end; what it has not got lies on disk."""
    script = (
        "import sys; from pathlib import Path; from btp.runner.tracking.wandb_session import opened\n"
        "logger = dict(name='wandb', mode='online', project='p', entity=None, wait_s=20, upload_s=5)\n"
        f"with opened(logger, Path({str(tmp_path)!r}), 'abc') as run:\n"
        "    print('open', flush=True); sys.stdin.readline(); run.log({'accuracy': 0.5})"
    )
    root, pipe = Path(__file__).parents[2], subprocess.PIPE
    with serving() as server:
        env = server.environment(os.environ)
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            env=env,
            cwd=root,
            stdin=pipe,
            stdout=pipe,
            stderr=subprocess.STDOUT,
            text=True,
        )
        said = iter(process.stdout.readline, "")
        assert any(line == "open\n" for line in said)
    began = time.monotonic()
    printed, _ = process.communicate("\n", timeout=120)
    assert process.returncode == 0, printed
    assert time.monotonic() - began < 60
    (record,) = tmp_path.glob("wandb/run-*-abc")
    assert f"W&B: not all was sent in time (logger.upload_s). To send the rest: wandb sync {record}" in printed
    assert load(record / "run-abc.wandb")["history"][0]["accuracy"] == 0.5


def test_a_server_that_is_there_but_mute_is_waited_for_no_longer_than_said(tmp_path):
    """It takes connections and never answers, as behind some firewalls."""
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen(50)
        address = f"http://127.0.0.1:{mute.getsockname()[1]}"
        env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
        env |= {"WANDB_BASE_URL": address, "WANDB_API_KEY": KEY}
        script = (
            "from pathlib import Path; from btp.runner.tracking.wandb_session import described, opened\n"
            "logger = dict(name='wandb', mode='online', project='p', entity=None, wait_s=5, upload_s=5)\n"
            f"with opened(logger, Path({str(tmp_path)!r}), 'abc') as run: print(described(run)['mode'])"
        )
        began = time.monotonic()
        root = Path(__file__).parents[2]
        done = subprocess.run([sys.executable, "-c", script], env=env, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "offline" in done.stdout
    assert time.monotonic() - began < 60
    assert list(tmp_path.glob("wandb/offline-run-*-abc/*.wandb"))
