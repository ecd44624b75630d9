"""FasterVLM: the card's example, pictures on their own, and the shared count in front of the language model."""

from dataclasses import replace

import pytest
import torch
from hand import signals, stage, tokens

from btp.core.schedule import Schedule
from btp.core.signals import Signal, Signals
from btp.core.topk import top_k
from btp.pruners.fastervlm import FasterVLM

CLS = Signal("attention", "vision.feature", "cls", "probs")
OUTPUT = "vision.output"


def keep(seen, attention, k, site=OUTPUT, heads="mean"):
    values = Signals({CLS: attention})
    return FasterVLM(heads=heads, score="cls").select(seen, values, stage(site, k)).keep


def test_worked_example():
    """Mean over heads, not the largest: [.10, .185, .27, .03, .21, .205] keeps 2, 4, 5."""
    heads = torch.tensor([[0.05, 0.30, 0.10, 0.02, 0.25, 0.28], [0.15, 0.07, 0.44, 0.04, 0.17, 0.13]])
    attention = heads[None, :, None]
    assert keep(tokens(6), attention, 3).tolist() == [[2, 4, 5]]
    assert keep(tokens(6), attention, 3, heads="max").tolist() == [[1, 2, 5]]


def test_pictures_are_on_their_own():
    """Each keeps its own k; another order of pictures is another order of kept sets, and k = N keeps all."""
    attention = torch.rand(5, 4, 1, 36)
    seen = tokens(*[36] * 5)
    kept = keep(seen, attention, 7)
    assert kept.shape == (5, 7)
    shuffle = torch.randperm(5)
    assert torch.equal(keep(seen, attention[shuffle], 7), kept[shuffle])
    assert torch.equal(kept, top_k(attention.mean((1, 2)), [7] * 5))
    assert keep(seen, attention, 36)[2].tolist() == list(range(36))


def test_ties_go_to_the_lowest_index():
    """A tower that looks everywhere alike keeps the first patches."""
    assert keep(tokens(8), torch.full((1, 2, 1, 8), 0.1), 3).tolist() == [[0, 1, 2]]


def test_one_count_for_all_pictures():
    """At llm.input: the best of both pictures of row 0, looked up by picture and place; tokens off the grid last."""
    attention = torch.zeros(3, 1, 1, 4)
    attention[0, 0, 0] = torch.tensor([0.9, 0.1, 0.8, 0.7])
    attention[1, 0, 0] = torch.tensor([0.2, 0.95, 0.3, 0.0])
    attention[2, 0, 0] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    seen = tokens(9, 4)
    picture = torch.tensor([[0, 0, 0, 0, -1, 1, 1, 1, 1], [2, 2, 2, 2, -1, -1, -1, -1, -1]])
    slot = torch.tensor([[0, 1, 2, 3, -1, 0, 1, 2, 3], [0, 1, 2, 3, -1, -1, -1, -1, -1]])
    seen = replace(seen, picture=picture, slot=slot)
    assert keep(seen, attention, 3, "llm.input").tolist() == [[0, 2, 6], [1, 2, 3]]
    kept = keep(seen, attention, 8, "llm.input")
    assert kept.tolist() == [[0, 1, 2, 3, 5, 6, 7, 8], [0, 1, 2, 3, -1, -1, -1, -1]]


@pytest.mark.parametrize("site", [OUTPUT, "llm.input"])
def test_signals(site):
    """One row of the layer the projector reads; the stand-in asks for the mean over all rows."""
    assert FasterVLM(heads="mean", score="cls").needs(stage(site)) == (CLS,)
    received = FasterVLM(heads="mean", score="received")
    assert received.needs(stage(site)) == (Signal("attention", "vision.feature", "mean", "probs"),)
    seen = tokens(10, 6)
    values = signals(received, seen, stage(site))
    kept = received.select(seen, values, stage(site)).keep
    assert torch.equal(kept, top_k(next(iter(values.values())).mean((1, 2)), (5, 3), seen.valid))


@pytest.mark.parametrize("site", ["llm.layer.2", "vision.layer.1", "vision.mlp.1"])
def test_site_messages(site):
    """Elsewhere patches are gone or not there yet."""
    with pytest.raises(ValueError, match=rf"schedule.0.site is {site}, but pruner 'fastervlm' chooses once"):
        FasterVLM(heads="mean", score="cls").check(Schedule.from_config([{"site": site, "keep": 0.5}]))


def test_accepted_schedule():
    """A later withdrawal of everything is nobody's choice."""
    stages = [{"site": OUTPUT, "keep": 0.5, "positions": "renumber"}, {"site": "llm.layer.3", "keep": 0}]
    FasterVLM(heads="max", score="received").check(Schedule.from_config(stages))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("heads", "sum", "pruner.method.heads is 'sum'. Choose from: mean, max"),
        ("score", "mean", "pruner.method.score is 'mean'. Choose from: cls, received"),
    ],
)
def test_method_messages(key, value, message):
    """Unknown settings are refused with the known ones."""
    with pytest.raises(ValueError, match=message):
        FasterVLM(**{"heads": "mean", "score": "cls"} | {key: value})
