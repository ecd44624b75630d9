"""A watched pruner decides as the bare one does."""

import copy
import itertools

import pytest
import tiny

from btp.core.pruner import Pruner, ScorePruner
from btp.core.schedule import Schedule
from btp.core.signals import Signal
from btp.engine.attach import attach
from btp.measure.timed_pruner import TimedPruner, timed

TWO = Schedule.from_config(
    [{"site": "llm.layer.1", "keep": 5, "power": 1}, {"site": "llm.layer.3", "keep": 2, "power": 2}]
)


class Looked(ScorePruner):
    """Ranks by what the last token looks at, times the norm of the states; knows one setting."""

    stage_settings = frozenset({"power"})
    colour = "red"

    def needs(self, stage):
        """The attention of the layer before."""
        return (Signal("attention", stage.site.previous_layer, "last"),)

    def score(self, tokens, signals, stage):
        """[B, N]."""
        norm = (tokens.hidden @ tokens.hidden.mT).diagonal(dim1=1, dim2=2)
        return signals[self.needs(stage)[0]].mean((1, 2)) * norm ** stage.settings["power"]


class Fails(ScorePruner):
    """Cannot decide."""

    def score(self, tokens, signals, stage):
        """Raises."""
        raise ArithmeticError("no")


@pytest.fixture
def ticks():
    """A clock that moves by one second at each reading."""
    count = itertools.count()
    return lambda: float(next(count))


def generate(pruner, schedule=TWO):
    """Indices that each stage kept of one picture."""
    lvlm = tiny.llava()
    with attach(lvlm, pruner, schedule) as trace:
        lvlm.generate(**tiny.prompts(lvlm, [[2, "i", 5]]), max_new_tokens=1, do_sample=False)
    return trace.method, [stage.kept for stage in trace.last.stages]


def test_same_decisions(ticks):
    """Idle, timing and counting, it keeps what the bare pruner keeps, under its name."""
    bare = generate(Looked())
    pruner = timed(Looked())
    assert generate(pruner) == bare
    assert pruner.seconds == []
    with pruner.timing(lambda: None, ticks):
        assert generate(pruner) == bare
    with pruner.counting():
        assert generate(pruner) == bare
    assert bare[0] == "looked"


def test_timing(ticks):
    """One duration per select; the device is waited for before start and stop; nothing is kept outside."""
    waits = []
    pruner = timed(Looked())
    with pruner.timing(lambda: waits.append(1), ticks):
        generate(pruner)
    generate(pruner)
    assert pruner.seconds == [1.0, 1.0]
    assert len(waits) == 4


def test_counting():
    """The products of its selects over 9 and 5 tokens, and the attention rows that came; anew each time."""
    pruner = timed(Looked())
    for _ in range(2):
        with pruner.counting():
            generate(pruner)
        assert pruner.flops == 2 * 32 * (9 * 9 + 5 * 5)
        rows = {str(signal.site): queries for signal, queries in pruner.attention.items()}
        assert rows == {"llm.layer.0": 1, "llm.layer.2": 1}


def test_what_the_method_refuses_is_refused():
    """Settings are held against the method's own, by its own name."""
    wrong = Schedule.from_config([{"site": "llm.layer.1", "keep": 5, "powr": 1}])
    with pytest.raises(ValueError, match=r"pruner 'looked' has no such setting.*Did you mean power"):
        generate(timed(Looked()), wrong)


def test_it_stays_usable(ticks):
    """After a select that raised it is idle again; attributes are the method's; wrapping twice is once."""
    plain = Schedule.from_config([{"site": "llm.layer.1", "keep": 5}])
    pruner = timed(Fails())
    with pytest.raises(ArithmeticError), pruner.timing(lambda: None, ticks):
        generate(pruner, plain)
    with pytest.raises(ArithmeticError):
        generate(pruner, plain)
    assert pruner.seconds == []
    watched = timed(Looked())
    assert isinstance(watched, Pruner)
    assert timed(watched) is watched
    assert watched.colour == copy.deepcopy(watched).colour == "red"
    with pytest.raises(AttributeError, match="taste"):
        _ = watched.taste
    assert isinstance(copy.deepcopy(watched).pruner, Looked)
    assert isinstance(watched, TimedPruner)
