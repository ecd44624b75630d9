"""VTW: nothing to choose, and what it refuses."""

import pytest
from hand import stage, tokens

from btp.core.schedule import Schedule
from btp.core.signals import Signals
from btp.pruners.vtw import VTW


@pytest.mark.parametrize("positions", ["original", "renumber"])
@pytest.mark.parametrize("site", ["llm.layer.16", "llm.layer.0", "llm.input"])
def test_accepts_a_withdrawal(site, positions):
    """At any layer, with the hole in the positions or without it; no signal is asked for."""
    schedule = Schedule.from_config([{"site": site, "keep": 0, "positions": positions}])
    VTW().check(schedule)
    assert VTW().needs(schedule[0]) == ()


def test_tokens_on_average():
    """LLaVA-1.5-7B: 16 of 32 layers hold all 576 tokens, 15, 14 and 13 as the card has them."""
    for layer, tokens_avg in ((16, 288), (15, 270), (14, 252), (13, 234)):
        schedule = Schedule.from_config([{"site": f"llm.layer.{layer}", "keep": 0}])
        assert schedule.tokens_avg(576, 32) == tokens_avg


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"site": "llm.layer.4", "keep": 0.5}, "schedule.0.keep is 0.5, but pruner 'vtw' cannot choose"),
        ({"site": "llm.layer.4", "keep": "fit"}, "schedule.0.keep is fit, but pruner 'vtw'"),
        ({"site": "vision.output", "keep": 0}, "schedule.0.site is vision.output, but pruner 'vtw' withdraws between"),
        ({"site": "llm.cache.4", "keep": 0}, "schedule.0.site is llm.cache.4"),
        ({"site": "llm.layer.4", "keep": 0, "eta": 0.1}, "schedule.0.eta is set, but pruner 'vtw' has no such setting"),
    ],
)
def test_messages(entry, message):
    """Anything but a withdrawal between decoder layers."""
    with pytest.raises(ValueError, match=message):
        VTW().check(Schedule.from_config([entry]))


def test_is_never_asked():
    """A schedule that was not checked."""
    with pytest.raises(RuntimeError, match=r"asked to choose at llm.layer.2. Call check"):
        VTW().select(tokens(4), Signals(), stage())
