"""The shipped LVLMs see, need the picture deep, and are hurt by pruning. Tests of the models, not of a method."""

import pytest
import torch
from jobs import composed

from btp.core.schedule import Schedule, Stage
from btp.models.loading.load import find_checkpoint, load
from btp.pruners.random import Random
from btp.tasks.pocketvqa.task import PocketVQA
from experiments.embedded.measures.controls import percent
from experiments.embedded.measures.pocket import BATCH, Arm, answers

READING = ["digit", "number"]
HOPS = ["relation", "same_as"]
QUESTIONS = 40


def controls(layers, share):
    """No picture, the picture withdrawn at a quarter of the depth, and a few random tokens."""
    few = Random(seed=0, salt="content")
    return [
        Arm("unpruned"),
        Arm("blank", picture="blank"),
        Arm("quarter", Schedule((Stage(f"llm.layer.{layers // 4}", 0),))),
        Arm("random", Schedule((Stage("llm.input", share),)), few),
    ]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("pocket", 0.05), id="pocket", marks=pytest.mark.long),
        pytest.param(("pocket_mini", 0.1), id="pocket_mini"),
    ],
)
def scores(request):
    """Percent by ability of one shipped model under each control."""
    name, share = request.param
    config = composed(f"model={name}")["model"]
    loaded = load(config, find_checkpoint(config), torch.device("cpu"))
    task = PocketVQA("test", seed=0, size=QUESTIONS, abilities=[*READING, *HOPS])
    samples = [task[i] for i in range(len(task))]
    chance = {ability: 100 * share for ability, share in task.chance(samples).items()}
    arms = controls(loaded.host.num_layers, share)
    return {"chance": chance} | {arm.name: percent(answers(loaded, task, samples, arm, BATCH)) for arm in arms}


def test_it_reads(scores):
    assert min(scores["unpruned"][ability] for ability in READING) >= 90


def test_it_takes_two_hops(scores):
    assert min(scores["unpruned"][ability] for ability in HOPS) >= 90


def test_it_guesses_nothing_from_a_blank_picture(scores):
    for ability in (*READING, *HOPS):
        assert scores["blank"][ability] <= scores["chance"][ability] + 3


def test_withdrawing_the_picture_at_a_quarter_of_the_depth_hurts(scores):
    for ability in READING:
        assert scores["unpruned"][ability] - scores["quarter"][ability] >= 50


def test_few_random_tokens_hurt_reading(scores):
    for ability in READING:
        assert scores["unpruned"][ability] - scores["random"][ability] >= 10
