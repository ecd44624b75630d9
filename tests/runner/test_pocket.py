"""The shipped model sees, needs the picture deep, and can be hurt by pruning. Tests of the model, not of a method."""

import pytest
import torch
from jobs import composed

from btp.core.schedule import Schedule, Stage
from btp.models.load import find_checkpoint, load
from btp.pruners.random import Random
from btp.tasks.pocketvqa.task import PocketVQA
from experiments.pocket.measure import answers

READING = ["digit", "number"]
HOPS = ["relation", "same_as"]


@pytest.fixture(scope="module")
def scores():
    """Percent by ability, unpruned and under three insults, on one draw of 160 questions."""
    config = composed("model=pocket")["model"]
    loaded = load(config, find_checkpoint(config), torch.device("cpu"))
    task = PocketVQA("test", seed=0, size=160, abilities=[*READING, *HOPS])
    samples = [task[i] for i in range(len(task))]
    half = loaded.host.num_layers // 2
    arms = {
        "unpruned": (Schedule(), None, False),
        "blank": (Schedule(), None, True),
        "half depth": (Schedule((Stage(f"llm.layer.{half}", 0),)), None, False),
        "random": (Schedule((Stage("llm.layer.2", 0.1),)), Random(seed=0, salt="content"), False),
    }
    chance = {ability: 100 * share for ability, share in task.chance(samples).items()}
    return {"chance": chance} | {name: answers(loaded, task, samples, *arm, 40) for name, arm in arms.items()}


def test_it_reads(scores):
    assert scores["unpruned"]["digit"] >= 95
    assert scores["unpruned"]["number"] >= 90


def test_it_takes_two_hops(scores):
    for ability in HOPS:
        assert scores["unpruned"][ability] >= 90


def test_it_guesses_nothing_from_a_blank_picture(scores):
    for ability in (*READING, *HOPS):
        assert scores["blank"][ability] <= scores["chance"][ability] + 3


def test_withdrawing_the_picture_at_half_depth_hurts(scores):
    for ability in (*READING, *HOPS):
        assert scores["unpruned"][ability] - scores["half depth"][ability] >= 20


def test_random_selection_of_a_tenth_hurts_reading(scores):
    for ability in READING:
        assert scores["unpruned"][ability] - scores["random"][ability] >= 10
