"""Several devices: the samples are shared out, each is answered once, and no process waits for one that is gone."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from jobs import command, composed, job

from btp.cli.check_config import check_config
from btp.runner.devices import place
from btp.runner.workers import launch, ranks
from btp.runner.workers.launch import Workers

SMALL = ["model=pocket_mini", "logger=none", "trainer=cpu", "pruner=none", "cost.enabled=false", "overlays=0"]
TWO = [*SMALL, "trainer.devices=2", "trainer.batch=2"]


def finished(process):
    """Exit code and what was printed; a run that hangs fails here."""
    out, _ = process.communicate(timeout=240)
    return process.returncode, out


def answered(output):
    """Sample ids as they lie on disk, by the file of the process that wrote them."""
    files = sorted(output.glob(".store/answers/*/rows-*.jsonl"))
    return {f.name: [json.loads(line)["sample"] for line in f.read_text().splitlines()] for f in files}


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_another_start_completes_it(tmp_path):
    """No hang, one message, the state on disk; then the table of a single process, with no sample answered twice."""
    process = command(*TWO, "limit=41", f"output={tmp_path}")
    mine = None
    until = time.time() + 240
    while mine is None and process.poll() is None and time.time() < until:
        if len(answered(tmp_path).get("rows-1.jsonl", ())) >= 4:
            mine = _process_of_rank(process.pid, 1)
        time.sleep(0.02)
    os.kill(mine, signal.SIGKILL)
    code, out = finished(process)
    assert code == 1
    assert out.count("error: ") == 1
    assert "error: process 1 of 2 of this run ended with SIGKILL" in out
    (run,) = tmp_path.glob("pocket_mini-*")
    assert json.loads((run / "run.json").read_text())["state"] == "failed"
    before = answered(tmp_path)
    assert 4 <= sum(map(len, before.values())) < 41

    code, out = finished(command(*TWO, "limit=41", f"output={tmp_path}"))
    assert code == 0, out
    after = answered(tmp_path)
    samples = [sample for found in after.values() for sample in found]
    assert len(samples) == len(set(samples)) == 41
    assert {name: found[: len(before[name])] for name, found in after.items()} == before
    alone = job(tmp_path / "alone", *SMALL, "limit=41")
    columns = ["sample", "prediction", "score", "tokens_avg"]
    pd.testing.assert_frame_equal(*[pd.read_parquet(r / "samples.parquet")[columns] for r in (run, alone)])


@pytest.mark.slow
def test_a_method_is_calibrated_once_and_a_process_may_have_no_sample(tmp_path):
    """One sample for two processes: the second waits through the calibration, answers nothing, and both end."""
    words = ["pruner=btp", "~pruner@controls.random", "~pruner@controls.downsampled"]
    code, out = finished(command(*TWO, *words, "limit=1", "calibration.samples=8", f"output={tmp_path}"))
    assert code == 0, out
    assert answered(tmp_path).keys() == {"rows-0.jsonl"}
    (run,) = tmp_path.glob("pocket_mini-*")
    state = json.loads((run / "run.json").read_text())
    assert state["state"] == "finished"
    assert state["batch"] == {"asked": 2, "used": 2}
    assert "8/8 samples" in out
    assert "16/16" not in out


@pytest.mark.slow
def test_an_error_in_one_process_is_one_message(tmp_path):
    """The second process cannot write its answers; the first must not wait for it."""
    job(tmp_path, *SMALL, "limit=1")
    (answers,) = tmp_path.glob(".store/answers/*/")
    (answers / "rows-1.jsonl").mkdir()
    code, out = finished(command(*TWO, "limit=8", f"output={tmp_path}"))
    assert code == 1
    assert out.count("error: ") == 1
    assert "rows-1.jsonl" in out.split("error: ")[1]
    assert "Traceback" not in out
    errors = [json.loads(f.read_text()).get("error", "") for f in tmp_path.glob("pocket_mini-*/run.json")]
    assert sum("rows-1.jsonl" in error for error in errors) == 1
    assert not list(tmp_path.glob(".store/requests/*"))


def _process_of_rank(parent, rank):
    """The id of the process of one rank, by its environment."""
    for status in os.listdir("/proc"):
        try:
            ids = Path(f"/proc/{status}/stat").read_text().rsplit(")", 1)[1].split()
            text = Path(f"/proc/{status}/environ").read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue
        if int(ids[1]) == parent and f"RANK={rank}".encode() in text:
            return int(status)
    return None


FAKE = """
import json, os, pathlib, signal, sys, time
sys.path.insert(0, {root!r})
from btp.runner.workers.launch import Outcome
from btp.runner.workers.ranks import LOST
request, rank = pathlib.Path(sys.argv[1]), int(os.environ["RANK"])
what = json.loads(request.read_text())["do"][rank]

def lost(*_):
    Outcome(LOST, folder={folder!r}).write(request, rank)
    sys.exit(LOST)

signal.signal(signal.SIGTERM, lost)
if what == "wait":
    time.sleep(60)
if what == "die":
    os.kill(os.getpid(), signal.SIGKILL)
code = int(what != "work")
Outcome(code, "" if what == "work" else what, {folder!r}).write(request, rank)
sys.exit(code)
"""


@pytest.fixture
def together(tmp_path, monkeypatch, capfd):
    """Starts processes that do as they are told, and returns how the run ended and what was said."""
    script, folder = tmp_path / "worker.py", tmp_path / "run"
    folder.mkdir()
    script.write_text(FAKE.format(root=os.getcwd(), folder=str(folder)))
    monkeypatch.setattr(launch, "WORKER", (sys.executable, str(script)))
    monkeypatch.setattr(ranks, "GRACE_S", 0.2)

    def run(*what):
        (folder / "run.json").write_text(json.dumps({"state": "running"}))
        trainer = {"accelerator": "cpu", "devices": len(what)}
        outcome = Workers(serving=True).run(tmp_path, {"do": what, "trainer": trainer})
        assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "worker.py"], "what passed between is cleared away"
        return outcome, json.loads((folder / "run.json").read_text()), capfd.readouterr().err

    return run


def test_all_well(together):
    outcome, _, said = together("work", "work", "work")
    assert outcome.code == 0
    assert not said


@pytest.mark.long
@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (("wait", "no room"), "no room"),
        (("no room", "wait"), "no room"),
        (("no room", "no room"), "no room"),
        (("wait", "die"), "process 1 of 2 of this run ended with SIGKILL, so the others were ended too"),
        (("die", "wait", "wait"), "process 0 of 3 of this run ended with SIGKILL, so the others were ended too"),
    ],
)
def test_one_that_fails_ends_all_with_one_message(together, what, reason):
    began = time.monotonic()
    outcome, state, said = together(*what)
    assert outcome.code == 1
    assert outcome.reason.startswith(reason)
    assert said.count("error: ") == 1
    assert f"error: {reason}" in said
    assert state["state"] == "failed"
    assert state["error"] == outcome.reason
    assert time.monotonic() - began < 20


def test_what_does_not_heed_is_ended(monkeypatch):
    """A process that ignores the request to end is ended all the same."""
    monkeypatch.setattr(ranks, "END_S", 0.5)
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    )
    both = ranks.Ranks([sys.executable, "-c", f"import os; os.environ['RANK'] == '0' and exit(3); {stubborn}"], 2)
    monkeypatch.setattr(ranks, "GRACE_S", 1.0)
    assert both.wait(0.02) == [3, -signal.SIGKILL]


@pytest.mark.parametrize(
    ("asked", "found"),
    [({"devices": 1}, [0]), ({"devices": 3}, [0, 1, 2]), ({"devices": "auto"}, [0])],
)
def test_devices_on_a_cpu_are_a_number(asked, found):
    assert ranks.devices({"accelerator": "cpu"} | asked) == found


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"devices": 0}, "trainer.devices is 0. Set it to a whole number from 1 on"),
        ({"devices": "two"}, "trainer.devices is 'two'. Set it to a whole number"),
        ({"devices": [0, 1]}, "a CPU has no indices. Set trainer.devices to their number"),
        ({"accelerator": "auto", "devices": 64}, "trainer.devices is 64, but this machine has"),
        ({"devices": 2}, "was started alone. Start the run with run.py"),
    ],
)
def test_devices_that_cannot_be(trainer, message, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match=re.escape(message)):
        place({"accelerator": "cpu"} | trainer)


def test_a_model_over_several_devices_has_one_process(tmp_path):
    config = composed("trainer=cpu", "trainer.devices=2", "model.device_map=auto", f"output={tmp_path}")
    with pytest.raises(ValueError, match=r"which spreads one model over devices\. Set trainer\.devices=1"):
        check_config(config)
