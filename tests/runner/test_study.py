"""Knobs proposed by Optuna: what can be chosen, the study on disk, and a search that is killed and goes on."""

import json
import re
import signal
import time
from types import SimpleNamespace

import optuna
import psutil
import pytest
from jobs import composed, job
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from sweeps import cells, start, sweep_command, times_computed

from btp.runner.sweeps.optuna_sweep import check_objectives, knobs, open_study
from btp.runner.sweeps.outcomes import Prospect, outcomes

SEARCH = (
    "hydra/sweeper=optuna",
    "hydra.sweeper.n_trials=3",
    "pruner=btp",
    "schedule=uniform",
    "budget.share=0.6",
    "stages=range(1,4)",
    "schedule.balance.first=interval(0,1)",
    "limit=9",
)


def settings(**more):
    known = {"objectives": {"accuracy": "maximize", "tokens_avg": "minimize"}, "sampler": "tpe", "seed": 0}
    return SimpleNamespace(**{"storage": None, "study_name": None, **known, **more})


def trials(folder):
    """All of a sweep's trials, in order."""
    return optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder}/study.db").trials


def test_knobs_are_read_from_the_command_line():
    fixed, space = knobs(
        ["limit=9", "pruner=btp,dart", "stages=range(1,4)", "a.b=interval(0,1)", "c=tag(log,interval(0.1,10))"]
    )
    assert fixed == ["limit=9"]
    assert space == {
        "pruner": CategoricalDistribution(["btp", "dart"]),
        "stages": IntDistribution(1, 3),
        "a.b": FloatDistribution(0, 1),
        "c": FloatDistribution(0.1, 10, log=True),
    }


def test_knobs_hold_what_the_words_say():
    """A range excludes its stop also in decimals; an interval that is cast is proposed whole numbers of."""
    _, space = knobs(["a=range(0.2,0.6,0.2)", "b=int(interval(1,3))"])
    assert space == {"a": FloatDistribution(0.2, 0.4, step=0.2), "b": IntDistribution(1, 3)}


def test_nothing_to_choose_is_refused():
    with pytest.raises(ValueError, match="has nothing to choose"):
        knobs(["limit=9", "pruner=btp"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"sampler": "magic"}, r"hydra.sweeper.sampler is 'magic'. Choose from: tpe"),
        ({"objectives": {}}, r"Set hydra.sweeper.maximize=\[accuracy\]"),
    ],
)
def test_settings_that_cannot_be(more, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        open_study(settings(**more), {}, tmp_path)


def prospect(*words, turned=()):
    return Prospect(composed("limit=9", *words), turned)


@pytest.mark.parametrize(
    ("words", "name", "message"),
    [
        ((), "acuracy", "maximize names 'acuracy', which a run does not report. Did you mean accuracy?"),
        ((), "digits", "Did you mean digit? Choose from: accuracy, agreement, attribute, cost/NAME, counting, "),
        (("task.dataset.abilities=[number]",), "digit", "Choose from: accuracy, agreement, cost/NAME, kl, number, tok"),
        (("limit=2",), "describe", "which a run does not report"),
        (("cost.enabled=false",), "cost/kv_mib", "but cost.enabled is false, so that no run measures costs"),
        (("cost.enabled=false",), "cost/btp/kv_mib", "Set cost.enabled=true"),
        ((), "metric/f1", "names 'metric/f1', which a run does not report"),
        ((), "bpt/accuracy", "names 'bpt/accuracy', which"),
        (("pruner=random",), "btp/accuracy", "names 'btp/accuracy', which"),
        (("model=llava15", "model.weights=random"), "accuracy", "Choose from: cost/NAME."),
    ],
)
def test_objectives_that_no_cell_reports_are_refused(words, name, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_objectives({name: "maximize"}, prospect(*words))


@pytest.mark.parametrize(
    ("words", "turned", "names"),
    [
        (
            (),
            (),
            ["accuracy", "kl", "digit", "unpruned/digit", "btp/kl", "random/accuracy", "cost/kv_mib", "cost/btp/x"],
        ),
        ((), ("task",), ["whatever", "metric/f1"]),
        ((), ("pruner",), ["dart/accuracy"]),
        ((), ("experiment",), ["whatever", "metric/f1", "dart/accuracy", "cost/kv_mib"]),
        (("cost.enabled=false",), ("cost",), ["cost/kv_mib"]),
        (("model=llava15", "model.weights=random"), (), ["cost/kv_mib"]),
        (("cost.enabled=false", "model=llava15", "model.weights=random"), (), ["cost/kv_mib"]),
        (("task=lmms_eval", "tasks=[mme]"), (), ["accuracy", "metric/mme_score", "mme"]),
    ],
)
def test_objectives_that_a_cell_may_report_are_not(words, turned, names):
    check_objectives(dict.fromkeys(names, "maximize"), prospect(*words, turned=turned))


def test_metrics_of_local_files_are_left_to_the_run(tmp_path):
    """Only the task's own code knows their names; abilities are read from the table."""
    rows = [{"question": "Is it?", "answer": "yes", "ability": ability} for ability in ("one", "two")]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    local = prospect("task=vqa_folder", f"task.path={tmp_path / 'mine.jsonl'}")
    check_objectives(dict.fromkeys(["metric/f1", "one"], "maximize"), local)
    with pytest.raises(ValueError, match="Choose from: accuracy, agreement, cost/NAME, kl, one, tokens_avg, two"):
        check_objectives({"three": "maximize"}, local)


@pytest.mark.slow
def test_every_outcome_of_a_run_may_be_an_objective(tmp_path):
    """What is refused before the first cell is refused behind it as well: no name of a real run is unknown."""
    words = ("experiment=smoke", "trainer=cpu", "limit=9", "overlays=0", "pruner=random", "budget.share=0.5")
    words += ("calibration.samples=8",)
    found = outcomes(job(tmp_path, *words[2:]))
    expected = Prospect(composed(*words))
    assert len(found) > 50
    assert [name for name in found if not expected.reports(name)] == []


@pytest.mark.long
def test_a_wrong_objective_ends_a_search_before_its_first_cell(tmp_path):
    process = start(tmp_path, *SEARCH, "hydra.sweeper.maximize=[digitt]")
    assert process.wait(timeout=120) == 1
    assert "Did you mean digit?" in process.printed()
    assert not (tmp_path / "sweep").exists()
    assert not list((tmp_path / "out").glob("pocket-*"))


def test_another_search_in_the_same_folder_is_refused(tmp_path):
    space = {"stages": IntDistribution(1, 3)}
    open_study(settings(), space, tmp_path)
    open_study(settings(), space, tmp_path)
    with pytest.raises(ValueError, match="which cannot be compared"):
        open_study(settings(), space | {"x": FloatDistribution(0, 1)}, tmp_path)


@pytest.mark.slow
def test_a_search_is_killed_and_goes_on(tmp_path):
    """Killed hard in its second cell: what was found is kept, the cell under way goes on, and no trial is lost."""
    process = start(tmp_path, *SEARCH)
    until = time.monotonic() + 300
    while time.monotonic() < until and process.poll() is None:
        if len(cells(tmp_path / "sweep")) > 1:
            break
        time.sleep(0.05)
    for child in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        child.send_signal(signal.SIGKILL)
    process.wait()
    before = trials(tmp_path / "sweep")
    assert [t.state.name for t in before] == ["COMPLETE", "RUNNING"], process.printed()
    resumed = sweep_command("resume", tmp_path / "sweep")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    after = trials(tmp_path / "sweep")
    assert [t.state.name for t in after] == ["COMPLETE"] * 3
    assert [t.params for t in after[:2]] == [t.params for t in before]
    assert after[0].values == before[0].values
    assert set(times_computed(tmp_path / "out").values()) == {1}
    assert "not beaten in every objective" in resumed.stdout
    assert (tmp_path / "sweep" / "comparison.html").is_file()
    accuracy, tokens = after[0].values
    assert 0 <= accuracy <= 1
    assert 0 < tokens < 144
