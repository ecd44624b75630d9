"""Knobs proposed by Optuna: what can be chosen, the study on disk, and a search that is killed and goes on."""

import os
import signal
import time
from types import SimpleNamespace

import optuna
import psutil
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from sweeps import cells, start, sweep_command, times_computed

from btp.runner.study import knobs, open_study

SEARCH = (
    "hydra/sweeper=optuna",
    "hydra.sweeper.n_trials=4",
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


def test_another_search_in_the_same_folder_is_refused(tmp_path):
    space = {"stages": IntDistribution(1, 3)}
    open_study(settings(), space, tmp_path)
    open_study(settings(), space, tmp_path)
    with pytest.raises(ValueError, match="which cannot be compared"):
        open_study(settings(), space | {"x": FloatDistribution(0, 1)}, tmp_path)


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
    assert [t.state.name for t in before] == ["COMPLETE", "RUNNING"], (tmp_path / "printed.txt").read_text()
    resumed = sweep_command("resume", tmp_path / "sweep", env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert resumed.returncode == 0, resumed.stderr
    after = trials(tmp_path / "sweep")
    assert [t.state.name for t in after] == ["COMPLETE"] * 4
    assert [t.params for t in after[:2]] == [t.params for t in before]
    assert after[0].values == before[0].values
    assert set(times_computed(tmp_path / "out").values()) == {1}
    assert "not beaten in every objective" in resumed.stdout
    assert (tmp_path / "sweep" / "comparison.html").is_file()
    accuracy, tokens = after[0].values
    assert 0 <= accuracy <= 1
    assert 0 < tokens < 144
