"""A word that changes nothing but the run's identity is refused, and says why; settings of the yamls may lie unused."""

from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from btp.cli.check_config import settled
from btp.cli.overrides import find_fault
from btp.cli.unused_overrides import fault_of_effects
from btp.runner.run_identity import run_identity

CONF = Path(__file__).resolve().parents[2] / "conf"
RANDOM = ["model=llava15", "model.weights=random"]


@cache
def composed(*words):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = OmegaConf.to_container(compose("config", overrides=list(words)), resolve=True)
    return settled(found, words)


def fault(*words):
    """Of a single run."""
    return fault_of_effects(OverridesParser.create().parse_overrides(list(words)), composed(*words))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["schedule=paper", "stages=5"], "stages=5 has no effect: schedule=paper takes the published stages"),
        (["pruner=none", "stages=5"], "pruner=none prunes nothing"),
        (["calibration.artifact=x.yaml", "stages=2"], "the stages come from calibration.artifact=x.yaml"),
        (["pruner=fastv", "schedule.tau=0.9"], "schedule.tau=0.9 has no effect: pruner 'fastv' brings"),
        (["pruner=fastv", "schedule.balance.first=0.1"], "schedule.balance.first=0.1 has no effect"),
        (["pruner=diversity", "schedule.balance.first=0.1"], "pruner 'diversity' does not read a stage's balance"),
        (["pruner=fastv", "calibration.batch=3"], "calibration.batch=3 has no effect: nothing is calibrated with"),
        (["schedule=uniform", "calibration.samples=8"], "nothing is calibrated with pruner=btp and schedule=uniform"),
        (["pruner=fastv", "calibration=folder"], "calibration=folder has no effect"),
        (["pruner=fastv", "calibration.artifact=x.yaml"], "nothing is calibrated"),
        (["calibration.artifact=x.yaml", "calibration.samples=8"], "calibration.artifact=x.yaml is taken as it is"),
        (["pruner=none", "budget.share=0.3"], "budget.share=0.3 has no effect: pruner=none prunes nothing"),
        (["pruner=none", "schedule=uniform"], "schedule=uniform has no effect"),
        (["cost.enabled=false", "cost.repeats=9"], "cost.repeats=9 has no effect: cost.enabled is false"),
        ([*RANDOM, "schedule=paper", "cost.enabled=false"], "costs are all that model.weights=random has"),
        (["cache=off", "cache_gib=3"], "cache_gib=3 has no effect: cache is off"),
        (["pruner=vtw", "pruner.search.samples=3"], "pruner.search.samples=3 has no effect: nothing is searched"),
        (["pruner=withdraw", "schedule=uniform", "pruner.layer=3"], "schedule=uniform takes the place of the pruner's"),
        (["pruner=fastv", "training.steps=9"], "training.steps=9 has no effect: pruner=fastv has nothing to train"),
        (
            ["pruner=lvpruning", "pruner.weights=none", "training.rate=0.1"],
            "training.rate=0.1 has no effect: pruner.weights says which modules are taken",
        ),
        (
            ["pruner=lvpruning", "training.host_rate=0.1"],
            "training.host_rate=0.1 has no effect: training.train is modules",
        ),
        (["model.example.height=48"], "model.example.height=48 has no effect: it is the picture for"),
    ],
)
def test_a_word_without_effect(words, said):
    assert said in fault(*words)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["pruner=fastv"],
        ["pruner=none"],
        ["stages=2", "schedule.tau=0.9", "schedule.balance.first=0.3", "calibration.batch=3"],
        ["pruner=fastv", "schedule=uniform", "stages=2"],
        ["pruner=fastervlm_btp", "stages=2", "schedule.balance.first=0.2"],
        ["pruner=vtw", "pruner.layer=search", "pruner.search.samples=3", "calibration.samples=8"],
        ["pruner=vflowopt", "pruner.search.samples=3"],
        ["pruner=withdraw", "pruner.layer=3"],
        ["pruner=lvpruning", "training.steps=9", "pruner.losses.ratio=1"],
        ["pruner=lvpruning", "action=train", "training.train=both", "training.host_rate=0.1"],
        ["pruner=diversity", "schedule=uniform", "schedule.withdraw_last=true"],
        ["experiment=smoke", "cost.enabled=false"],
        [*RANDOM, "schedule=paper", "cost.repeats=2", "model.example.height=336"],
        ["cache_gib=3"],
        ["calibration.artifact=x.yaml"],
    ],
)
def test_words_with_one(words):
    assert fault(*words) is None


def test_in_a_sweep_a_word_counts_for_all_cells():
    """It is left alone where what decides is swept over, and refused where no cell reads it."""
    parsed = OverridesParser.create().parse_overrides(["pruner=fastv,btp", "stages=2"])
    assert fault_of_effects(parsed, composed("pruner=fastv", "stages=2")) is None
    parsed = OverridesParser.create().parse_overrides(["pruner=fastv", "stages=1,2"])
    assert "stages=1,2 has no effect" in fault_of_effects(parsed, composed("pruner=fastv", "stages=1"))


def test_on_a_command_line():
    assert "stages=5 has no effect" in find_fault(CONF, ["pruner=none", "stages=5"])


def test_stages_beside_a_pruner_with_its_own_are_said_to_have_no_effect(capsys):
    """And make no other run of it."""
    assert find_fault(CONF, ["pruner=fastv", "stages=5"]) is None
    assert "note: stages=5 has no effect: pruner 'fastv' brings its own stages" in capsys.readouterr().err
    names = [run_identity(composed("pruner=fastv", f"stages={n}"), "abc") for n in (2, 5)]
    assert names[0] == names[1]
    assert run_identity(composed("stages=2"), "abc") != run_identity(composed("stages=3"), "abc")


def test_a_training_names_the_runs_whose_pruner_it_makes():
    """And no others; modules that are named count by their card."""

    def names(*words):
        return {run_identity(composed(*words, f"training.steps={steps}"), "") for steps in (8, 9)}

    assert len(names("pruner=fastv")) == len(names("pruner=lvpruning", "pruner.weights=none")) == 1
    assert len(names("pruner=lvpruning")) == 2


def test_the_batch_of_a_calibration_does_not_name_the_run():
    """As trainer.batch does not."""
    one, other = (composed(*words) for words in ([], ["calibration.batch=3"]))
    assert run_identity(one, "x") == run_identity(other, "x")
    assert run_identity(one, "x") != run_identity(composed("calibration.samples=3"), "x")
