"""HiPrune: anchors, the patches around them and registers on a small grid, by hand."""

from dataclasses import replace

import pytest
import torch
from hand import row, signals, stage, tokens

from btp.core.schedule import Schedule
from btp.core.signals import Signal, Signals
from btp.pruners.hiprune import HiPrune
from btp.schedules.place import place_stages

OBJECT = "vision.layer.1"
DEEP = Signal("attention", "vision.feature", "mean", "probs")
MIDDLE = Signal("attention", OBJECT, "mean", "probs")
OUTPUT = "vision.output"


def example(middle, deep):
    """Twelve patches in three rows of four."""
    values = {MIDDLE: torch.tensor(middle), DEEP: torch.tensor(deep)}
    return tokens(12), Signals({signal: x.float().view(1, 1, 1, 12) for signal, x in values.items()})


def test_example():
    """Ten stay, half for anchors: one, patch 5, with 1, 4, 6, 9 around it; five registers by the last layer."""
    seen, values = example([0, 0, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0], [9, 8, 1, 2, 0, 0, 0, 7, 6, 0, 3, 5])
    method, at = HiPrune(alpha=0.5), stage(OUTPUT, 10, object=OBJECT)
    assert method.select(seen, values, at).keep.tolist() == [[0, 1, 4, 5, 6, 7, 8, 9, 10, 11]]
    rules = {name: rule[0].nonzero().flatten().tolist() for name, rule in method.explain(seen, values, at).items()}
    assert rules == {"anchor": [5], "buffer": [1, 4, 6, 9], "register": [0, 7, 8, 10, 11]}


def test_an_anchor_at_the_edge():
    """Patch 3, at the end of a row, has 2 and 7 around it: the next row's first is no neighbour."""
    seen, values = example([0, 0, 0, 1] + [0] * 8, [1] * 12)
    method = HiPrune(alpha=1.0)
    rules = method.explain(seen, values, stage(OUTPUT, 5, object=OBJECT))
    assert rules["buffer"][0].nonzero().flatten().tolist() == [2, 7]
    assert rules["register"][0].nonzero().flatten().tolist() == [0, 1]  # of equals the first


def test_more_anchors_than_room():
    """Anchors come first, then what lies around them by the last layer's attention."""
    seen, values = example([0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 1], [0, 3, 0, 0, 1, 0, 2, 0, 0, 0, 0, 0])
    # of 8 tokens round(8 / 5) = 2 anchors: 5 and 11, around them 1 4 6 9 and 7 10
    assert HiPrune(alpha=1.0).select(seen, values, stage(OUTPUT, 8, object=OBJECT)).keep.tolist() == [
        [1, 4, 5, 6, 7, 9, 10, 11]
    ]


def test_without_anchors_the_last_layer_decides():
    """alpha 0 asks for one signal and keeps what receives most."""
    seen, values = example([0] * 12, list(range(12)))
    method = HiPrune(alpha=0.0)
    assert method.needs(stage(OUTPUT, 3)) == (DEEP,)
    assert method.select(seen, values, stage(OUTPUT, 3)).keep.tolist() == [[9, 10, 11]]


def test_frames_and_pictures_are_apart():
    """A patch at the same place of another frame, or next to it in another picture, is no neighbour."""
    seen, values = example([0, 0, 0, 0, 0, 1] + [0] * 6, [1.0] * 12)
    coord = seen.coord.clone()
    coord[0, 6:, 0] = 1
    shown = HiPrune(alpha=1.0).explain(replace(seen, coord=coord), values, stage(OUTPUT, 5, object=OBJECT))
    assert shown["buffer"][0].nonzero().flatten().tolist() == [1, 4]
    image = seen.image.clone()
    image[0, :4] = 1
    shown = HiPrune(alpha=1.0).explain(replace(seen, image=image), values, stage(OUTPUT, 5, object=OBJECT))
    assert shown["buffer"][0].nonzero().flatten().tolist() == [4, 6, 9]


def test_pictures_do_not_see_each_other():
    """Each as alone."""
    method, seen, at = HiPrune(alpha=0.6), tokens(40, 23, 9, 2), stage(OUTPUT, 0.5, object=OBJECT)
    values = signals(method, seen, at)
    keep = method.select(seen, values, at).keep
    for b, k in enumerate((20, 11, 4, 1)):
        alone, its = row(b, seen, values)
        assert method.select(alone, its, at).keep[0].tolist() == keep[b, :k].tolist()


def test_the_object_layer_is_placed():
    """At its share of the tower's depth, as sites are; refused where the tower cannot be looked at."""
    stages = [{"site": OUTPUT, "keep": 3, "object": "vision.layer.8/23"}]
    assert place_stages(stages, 32, 23)[0]["object"] == "vision.layer.8"
    assert place_stages(stages, 4, 2)[0]["object"] == "vision.layer.1"
    with pytest.raises(ValueError, match=r"schedule.0.object is vision.layer.8/23, but the layers of this model's"):
        place_stages(stages, 4)
    with pytest.raises(ValueError, match=r"schedule.0.object is vision.layer.9/9, beyond its own 9 layers"):
        place_stages([stages[0] | {"object": "vision.layer.9/9"}], 4, 2)


def test_messages():
    """A share out of range, no object layer, other sites."""
    with pytest.raises(ValueError, match=r"pruner.method.alpha is 2. Write a share of the kept tokens"):
        HiPrune(alpha=2)
    for wrong in (None, "vision.output", "llm.layer.1", 8):
        config = {"site": OUTPUT, "keep": 0.5} | ({} if wrong is None else {"object": wrong})
        with pytest.raises(ValueError, match=r"schedule.0.object is .*Write the layer of the vision tower"):
            HiPrune(alpha=0.1).check(Schedule.from_config([config]))
    with pytest.raises(ValueError, match=r"schedule.0.site is llm.layer.2, but pruner 'hiprune' chooses once"):
        HiPrune(alpha=0.1).check(Schedule.from_config([{"site": "llm.layer.2", "keep": 0.5, "object": OBJECT}]))
