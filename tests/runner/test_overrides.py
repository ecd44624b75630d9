"""What the command line gets wrong is said in one message, with the nearest right word."""

from pathlib import Path

import pytest

from btp.runner.overrides import find_fault

CONF = Path(__file__).resolve().parents[2] / "conf"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stage=2"], "unknown key stage. Did you mean stages?"),
        (["model.pth=x"], "unknown key model.pth. Did you mean model.path?"),
        (["share=0.3"], "unknown key share. Did you mean budget.share?"),
        (["pruner.method.scores=probs"], "Did you mean pruner.method.score?"),
        (["pruner=bpt"], "pruner=bpt is not there. Did you mean pruner=btp? Options: attention, btp"),
        (["model=llava2"], "model=llava2 is not there. Did you mean model=llava15?"),
        (["pruner=btp,divesity"], "Did you mean pruner=diversity?"),
        (["stages=[1"], "cannot read the command line"),
    ],
)
def test_a_wrong_word_is_named_with_the_nearest_right_one(words, message):
    assert message in find_fault(CONF, words)


@pytest.mark.parametrize(
    "words",
    [
        ["model=pocket", "pruner=btp", "stages=3"],
        ["pruner=btp,random", "budget.share=0.22,0.4"],
        ["schedule=uniform", "budget.tokens=40"],
        ["+pruner@controls.diversity=diversity"],
        ["~pruner@controls.random"],
        ["task.dataset.abilities=[digit,number]"],
        ["experiment=smoke"],
        ["hydra.sweep.dir=elsewhere"],
    ],
)
def test_a_right_command_line_passes(words):
    assert find_fault(CONF, words) is None
