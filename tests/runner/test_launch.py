"""Workers: one process for the cells of a sweep, and none of them is lost with it."""

import json
import os
import sys

import pytest

from btp.runner.sweeps.cells import Cells
from btp.runner.sweeps.summary import Sweep
from btp.runner.workers import launch
from btp.runner.workers.launch import Outcome, Workers
from btp.schedules.fit import OutOfReach

FAKE = """
import json, os, pathlib, signal, sys, time
sys.path.insert(0, {root!r})
from btp.runner.workers.launch import Outcome

def run(path):
    request = pathlib.Path(path)
    what = json.loads(request.read_text())["do"]
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "quit":
        sys.exit(3)
    broken = what == "break"
    outcome = Outcome(int(what != "work"), what, str(os.getpid()), what == "budget", broken)
    outcome.write(request, int(os.environ.get("RANK", 0)))
    if broken:
        time.sleep(0.3)
        sys.exit(1)
    return outcome.code

if sys.argv[1:] == ["--serve"]:
    for line in sys.stdin:
        run(line.strip())
else:
    sys.exit(run(sys.argv[1]))
"""


@pytest.fixture
def workers(tmp_path, monkeypatch):
    """Makes workers that do as the request says and answer with their process id."""
    script = tmp_path / "worker.py"
    script.write_text(FAKE.format(root=os.getcwd()))
    monkeypatch.setattr(launch, "WORKER", (sys.executable, str(script)))
    made = []

    def make(serving):
        made.append(Workers(serving))
        return made[-1]

    yield make
    for each in made:
        each.close()


def do(workers, tmp_path, what, devices=1):
    outcome = workers.run(tmp_path, {"do": what, "trainer": {"accelerator": "cpu", "devices": devices}})
    assert [p.name for p in tmp_path.iterdir()] == ["worker.py"], "requests and outcomes are cleared away"
    return outcome


def test_a_sweep_is_served_by_one_process(workers, tmp_path):
    one = workers(serving=True)
    pids = {do(one, tmp_path, what).folder for what in ("work", "error", "budget", "work")}
    assert len(pids) == 1


def test_a_single_run_has_a_process_of_its_own(workers, tmp_path):
    one = workers(serving=False)
    assert do(one, tmp_path, "work").folder != do(one, tmp_path, "work").folder


def test_several_devices_get_a_fresh_process(workers, tmp_path):
    """One process each, which end with the run."""
    one = workers(serving=True)
    served = do(one, tmp_path, "work").folder
    assert do(one, tmp_path, "work", devices=2).folder != served
    assert do(one, tmp_path, "work").folder == served


def test_a_crash_ends_its_cell_and_not_the_sweep(workers, tmp_path, capfd):
    one = workers(serving=True)
    first = do(one, tmp_path, "work")
    assert do(one, tmp_path, "die") == Outcome(1, "the worker process ended with SIGKILL")
    assert do(one, tmp_path, "quit").reason == "the worker process ended with exit code 3"
    assert "error: the worker process ended with SIGKILL" in capfd.readouterr().err
    last = do(one, tmp_path, "work")
    assert last.code == 0
    assert last.folder != first.folder


def test_a_worker_that_leaves_is_not_handed_another_cell(workers, tmp_path):
    """It has answered, but is on its way out: the next cell must not wait in its pipe."""
    one = workers(serving=True)
    assert do(one, tmp_path, "break").reason == "break"
    assert do(one, tmp_path, "work").code == 0


def test_an_outcome_is_one_line():
    assert Outcome.of(ValueError("a\n  b")) == Outcome(1, "a b")
    assert Outcome.of(KeyError()).reason == "KeyError"


def ended(sweep, number, outcome):
    with Cells(sweep).running(number, f"cell={number}") as note:
        note.outcome = outcome


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ([Outcome(0, folder="a")], 0),
        ([Outcome(0, folder="a"), Outcome(1, "far", unreachable=True)], 0),
        ([Outcome(0, folder="a"), Outcome(1, "far", unreachable=True), Outcome(1, "broken")], 1),
        ([Outcome(1, "broken")], 1),
    ],
)
def test_a_sweep_ends_in_one_comparison(outcomes, code, tmp_path, monkeypatch, capsys):
    """Finished runs and failed ones with their reason go to the report; a budget out of reach is no failure."""
    asked = []

    def compare(folders, failed, out, study):
        asked.append(([str(f) for f in folders], failed, out))
        return "the table", [out / "page.html"]

    monkeypatch.setattr("btp.report.comparison.compare.compare", compare)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()  # the folder of a finished run
    for i, outcome in enumerate([*outcomes, *outcomes[:1]]):
        ended(tmp_path, i, outcome)
    assert Sweep(tmp_path).end() == code
    said = capsys.readouterr()
    failed = [(f"cell={i}", o.reason) for i, o in enumerate([*outcomes, *outcomes[:1]]) if o.code]
    if outcomes[0].code == 0:
        assert asked == [(["a"], failed, tmp_path)]
        assert "the table" in said.out
        assert "page.html" in said.out
    else:
        assert not asked
    for i, outcome in enumerate([*outcomes, *outcomes[:1]]):
        brief = "its budget is out of reach" if outcome.unreachable else outcome.reason
        assert (f"[{i}] cell={i}: {brief}" in said.err) == bool(outcome.code)


def test_the_end_of_a_sweep_is_brief(tmp_path, capsys):
    """What went wrong was said in full where it happened."""
    for number, reason in enumerate(("A budget cannot be met: so far. Set another.", "It broke, badly. Mend it.")):
        ended(tmp_path, number, Outcome(1, reason, unreachable=not number))
    assert Sweep(tmp_path).end() == 1
    said = capsys.readouterr().err
    assert "[0] cell=0: its budget is out of reach\n  [1] cell=1: It broke, badly\n" in said
    assert "Mend it" not in said


def test_a_comparison_that_fails_is_said(tmp_path, monkeypatch, capsys):
    def compare(folders, failed, out, study):
        raise ValueError("nothing to compare")

    monkeypatch.setattr("btp.report.comparison.compare.compare", compare)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()  # the folder of a finished run
    ended(tmp_path, 0, Outcome(0, folder="a"))
    assert Sweep(tmp_path).end() == 1
    assert "the runs cannot be compared: nothing to compare" in capsys.readouterr().err


def test_a_budget_out_of_reach_is_a_kind_of_its_own(tmp_path, monkeypatch):
    """The worker tells it apart from other errors, so that the sweep's exit code can."""
    from btp.runner import run as worker

    def handled(error):
        def fail(config, kept):
            raise error

        monkeypatch.setattr(worker, "Run", fail)
        request = tmp_path / "request.json"
        request.write_text(json.dumps({"debug": False, "trainer": {"accelerator": "cpu", "devices": 1}}))
        worker.handle(request, {})
        return Outcome(**json.loads((tmp_path / "request.outcome").read_text()))

    far = handled(OutOfReach("cannot be\nmet", 4.0, 9.0))
    assert (far.code, far.reason, far.unreachable, far.leaves) == (1, "cannot be met", True, False)
    assert not handled(ValueError("x")).unreachable
    assert not handled(OSError("x")).leaves
    assert handled(RuntimeError("device lost")).leaves
    assert handled(KeyError("x")).reason == "KeyError: 'x'"
    assert handled(KeyboardInterrupt()) == Outcome(130, "stopped", leaves=True)
