"""Modules are timed while they run inside a model, and left as they were."""

import itertools

import pytest
import tiny
import torch
from torch import nn

from btp.measure.phases import PhaseTimer


class Clock:
    """Ticks by one second at each reading, and counts syncs."""

    def __init__(self):
        self.ticks = itertools.count()
        self.syncs = 0

    def now(self):
        return float(next(self.ticks))

    def sync(self):
        self.syncs += 1


def hooks(model):
    """How many forward hooks a model carries."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_generate():
    """The vision tower runs once, the decoder once per token; the device is waited for twice per call."""
    lvlm, clock = tiny.llava(), Clock()
    inputs = tiny.prompts(lvlm, [[2, "i", 2]])
    modules = {"vision": lvlm.vision, "decoder": lvlm.decoder}
    lvlm.generate(**inputs, max_new_tokens=1, do_sample=False)  # the host installs hooks of its own
    before = hooks(lvlm.model)
    with PhaseTimer(modules, clock.sync, clock.now) as timer:
        lvlm.generate(**inputs, min_new_tokens=3, max_new_tokens=3, do_sample=False)
    assert timer.seconds == {"vision": [1.0], "decoder": [1.0] * 3}
    assert clock.syncs == 8
    assert hooks(lvlm.model) == before


def test_nested_calls():
    """A module inside another is on both clocks."""
    inner = nn.Linear(2, 2)
    outer = nn.Sequential(inner, nn.ReLU(), inner)
    clock = Clock()
    with PhaseTimer({"inner": inner, "outer": outer}, clock.sync, clock.now) as timer:
        outer(torch.ones(1, 2))
    assert timer.seconds == {"inner": [1.0, 1.0], "outer": [5.0]}


def test_exception():
    """A forward that fails is not counted, and the hooks go all the same."""
    layer, clock = nn.Linear(2, 2), Clock()
    timer = PhaseTimer({"layer": layer}, clock.sync, clock.now)
    with pytest.raises(RuntimeError), timer:
        layer(torch.ones(1, 3))
    with timer:
        layer(torch.ones(1, 2))
    assert timer.seconds == {"layer": [1.0]}
    assert hooks(layer) == 0
