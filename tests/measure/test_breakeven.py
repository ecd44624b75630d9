"""When pruning pays, by hand."""

import pytest

from btp.measure.roofline import Times
from experiments.cost.thresholds import (
    Outputs,
    measured_times,
    outputs_that_pay,
    selection_allowed,
    speedup,
    turning_point,
)

FULL = Times(vision=1, selection=0, prefill=9, per_token=2)


def test_times():
    """Ten seconds to the first token, two for each further one."""
    assert FULL.first == 10
    assert (FULL.until(1), FULL.until(6)) == (10, 20)
    assert FULL.less(Times(1, 2, 4, 1.5)) == {"vision": 0, "selection": -2, "prefill": 5, "per_token": 0.5}


@pytest.mark.parametrize(
    ("pruned", "worth", "found"),
    [
        (Times(1, 0, 4, 2), 1, Outputs(1)),  # five seconds less, steps alike
        (Times(1, 1, 8, 2), 1, Outputs(1)),  # all that prefill saves goes into selection: no loss
        (Times(1, 5, 8, 1.5), 1, Outputs(9)),  # four seconds late, half a second a token: even at the ninth
        (Times(1, 5, 7.75, 1.5), 1, Outputs(9)),  # 3.75 late: the eighth further token is the first to pay
        (Times(1, 0, 4, 3), 1, Outputs(1, 6)),  # five ahead, a second slower a token: even at the sixth
        (Times(1, 5, 9, 2), 1, Outputs(None)),
        (Times(1, 5, 9, 3), 1, Outputs(None)),
        (Times(1, 0, 4, 2), 1.25, Outputs(1, 8)),  # 10 + 2k >= 1.25 (5 + 2k): k up to 7.5
        (Times(1, 0, 9, 1), 1.5, Outputs(11)),  # 10 + 2k >= 1.5 (10 + k): k from 10 on
    ],
)
def test_output_tokens(pruned, worth, found):
    """The interval, and both of its ends on either side of the line."""
    assert outputs_that_pay(FULL, pruned, worth) == found
    for m in range(1, 30):
        inside = found.least is not None and found.least <= m and (found.most is None or m <= found.most)
        assert (FULL.until(m) >= worth * pruned.until(m) - 1e-12) == inside


def test_in_words():
    """As the command prints it."""
    assert str(Outputs(None)) == "at no number of output tokens"
    assert str(Outputs(1)) == "at any number of output tokens"
    assert str(Outputs(9)) == "from 9 output tokens on"
    assert str(Outputs(1, 6)) == "from 1 to 6 output tokens"


def test_whole_answer():
    """20 seconds against 12.5; selection may take what is saved and what it took."""
    pruned = Times(1, 0.5, 3.5, 1.5)
    assert speedup(FULL, pruned, 6) == 20 / 12.5
    assert selection_allowed(FULL, pruned, 6) == 8
    assert FULL.until(6) == Times(1, 8, 3.5, 1.5).until(6)


def test_turning_point():
    """The first number behind the change, either way; none where both ends agree."""
    assert turning_point(lambda n: n >= 37, 1, 100) == (37, True)
    assert turning_point(lambda n: n < 37, 1, 100) == (37, False)
    assert turning_point(lambda n: True, 1, 100) == (None, True)
    assert turning_point(lambda n: False, 1, 100) == (None, False)


def test_measured():
    """Medians of a cost.json; prefill is what the first token took beside vision and selection."""
    costs = {
        "vision_ms": {"median": 2},
        "selection_ms": None,
        "prefill_ms": {"median": 7},
        "per_token_ms": {"median": 3},
    }
    assert measured_times(costs) == Times(0.002, 0, 0.005, 0.003)
    costs["selection_ms"] = {"median": 6}  # timed in runs of its own, so the parts can exceed the whole
    assert measured_times(costs).prefill == 0


def test_messages():
    """Nothing to win, noise, and costs without a latency."""
    with pytest.raises(ValueError, match=r"worth is 0\.9, a speed-up below 1"):
        outputs_that_pay(FULL, FULL, 0.9)
    with pytest.raises(ValueError, match=r"A time is negative.*Measure more rounds"):
        outputs_that_pay(FULL, Times(1, 0, 1, -0.1))
    with pytest.raises(ValueError, match="The costs hold no per_token_ms"):
        measured_times({"prefill_ms": {"median": 1}})
