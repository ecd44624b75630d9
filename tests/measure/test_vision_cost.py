"""Operations where tokens leave in the vision tower: the formula holds against what ran."""

import pytest
import tiny

from btp.core.pruner import ScorePruner
from btp.core.schedule import Schedule
from btp.core.signals import Signal
from btp.engine.attach import attach
from btp.measure import segments
from btp.measure.architecture import architecture
from btp.measure.cost import Subject, measure
from btp.measure.flops import prefill, preview, shortened, vision
from btp.measure.timed_pruner import timed


class Looks(ScorePruner):
    """Ranks by what it is told to look at."""

    def __init__(self, *signals):
        self._signals = signals

    def needs(self, stage):
        """Signals given by hand; None means the stage's own layer."""
        return self._signals

    def score(self, tokens, signals, stage):
        """[B, N]."""
        return tokens.index.float().cos()


def subject(rows):
    """A tiny model with a batch."""
    lvlm = tiny.llava()
    inputs = tiny.prompts(lvlm, rows)
    sizes = architecture(lvlm.config)

    def generate(n):
        return lvlm.generate(**inputs, min_new_tokens=n, max_new_tokens=n, do_sample=False)

    runs = segments.square(sizes.vision, inputs["pixel_values"].shape[0])
    feature = lvlm.towers["vision"].feature
    return lvlm, Subject(generate, sizes, runs, lvlm.vision, lvlm.decoder, lvlm.device, lvlm.dtype, feature)


SITES = ["vision.layer.0", "vision.layer.1", "vision.mlp.0", "vision.mlp.1", "vision.output"]


@pytest.mark.parametrize("site", SITES)
def test_a_cut_in_the_tower(site):
    """Tower, projector and decoder cost what torch counts, wherever the tokens left."""
    lvlm, what = subject([[2, "i", 5], [4, "i", 3]])
    pruner = timed(Looks())
    schedule = Schedule.from_config([{"site": site, "keep": 4}])
    found = measure(what, lambda: attach(lvlm, pruner, schedule), pruner=pruner, new_tokens=2, repeats=2, warmup=0)
    assert found["flops_prefill"] == found["flops_prefill_measured"] < found["unpruned"]["flops_prefill"]
    assert found["tokens_avg"] == 4


@pytest.mark.parametrize(
    ("signal", "site"),
    [
        (Signal("attention", "vision.feature", "cls"), "llm.input"),
        (Signal("attention", "vision.layer.0", "mean"), "vision.output"),
        (Signal("attention", "llm.layer.1", "mean"), "llm.layer.2"),
        (Signal("preview", "llm.layer.2", "last"), "llm.layer.2"),
        (Signal("preview", "llm.layer.2", "text"), "llm.layer.2"),
    ],
    ids=str,
)
def test_signals_cost_what_they_are_said_to(signal, site):
    """Attention rows of the tower, means over all rows and previews are in the formula."""
    lvlm, what = subject([[3, "i", 4]])
    pruner = timed(Looks(signal))
    schedule = Schedule.from_config([{"site": site, "keep": 4}])
    found = measure(what, lambda: attach(lvlm, pruner, schedule), pruner=pruner, new_tokens=2, repeats=2, warmup=0)
    assert found["flops_signals"] > 0
    assert found["flops_prefill"] == found["flops_prefill_measured"]


def test_nothing_cut_costs_as_before():
    """The two formulas of the tower agree where everything passes."""
    _, what = subject([[2, "i", 5]])
    full = [(10, 10)] * 2
    assert shortened(what.architecture, what.segments, full, [9]) == vision(what.architecture, what.segments)
    assert prefill(what.architecture, [(16,)] * 4, what.segments, passed=full, projected=[9]) == prefill(
        what.architecture, [(16,)] * 4, what.segments
    )


def test_a_preview_by_hand():
    """Four query heads and two key heads of eight, 32 wide: projections of all tokens, then one row each."""
    stack = architecture(tiny.llava().config).decoder
    assert preview(stack, (7, 5), 1) == 2 * 12 * 32 * (4 + 2 + 2) * 8 + 2 * 12 * 32


def test_layers_of_another_model():
    """What another model recorded is refused."""
    _, what = subject([[2, "i", 5]])
    with pytest.raises(ValueError, match="passed has 3 layers, but the architecture has 2 vision layers"):
        shortened(what.architecture, what.segments, [(10, 10)] * 3, [9])
