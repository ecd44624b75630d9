"""Stages from curves, by hand."""

import pytest

from btp.core.schedule import Schedule
from btp.schedules.calibrated import (
    Shift,
    calibrated_stages,
    deepest_first,
    shift_layers,
    shifts,
    uniform_stages,
)
from btp.schedules.solve import solve_fit

BALANCE = {"first": 0.6, "last": 1.0}
#          0  1  2   3   4   5  6  7  8   9  10 11
CHANGED = [0, 0, 10, 90, 80, 5, 0, 0, 40, 0, 0, 20]
FLAT = [1.0] * 12
RULE = {"min_gap": 2, "balance": BALANCE, "withdraw_last": False}


def layers(stages):
    return [int(stage["site"].rsplit(".", 1)[1]) for stage in stages]


def test_shifts():
    """Strongest first, each as wide as half of its height; a plateau counts once."""
    assert shifts(CHANGED) == [Shift(3, 3, 4), Shift(8, 8, 8), Shift(11, 11, 11)]
    assert shifts([5, 5, 0, 7, 7, 7, 0, 1]) == [Shift(3, 3, 5), Shift(0, 0, 1), Shift(7, 7, 7)]
    assert shifts([0, 0, 0]) == []


def test_a_weaker_maximum_inside_a_stronger_shift_is_part_of_it():
    """100, 60, 90 is one shift; 44 behind a valley is its own and stops where the other begins."""
    assert shifts([0, 100, 60, 90, 10, 0]) == [Shift(1, 1, 3)]
    assert shifts([0, 100, 40, 44, 0]) == [Shift(1, 1, 1), Shift(3, 2, 3)]


def test_boundaries_lie_before_or_behind_a_shift():
    """Before where attention is equal, behind where the layer there looks at the image less, never inside."""
    assert shift_layers(CHANGED, FLAT, 3, 2) == [3, 8, 11]
    fading = [12 - float(layer) for layer in range(12)]
    assert shift_layers(CHANGED, fading, 2, 2) == [5, 9]
    assert 4 not in shift_layers(CHANGED, FLAT, 6, 1)


def test_gap_moves_or_skips_a_boundary():
    """At gap 6 only the far side of the shift at 8 is free; at gap 4 it would leave no third place."""
    assert shift_layers(CHANGED, FLAT, 2, 5) == [3, 8]
    assert shift_layers(CHANGED, FLAT, 2, 6) == [3, 9]
    assert shift_layers(CHANGED, FLAT, 3, 4) == [3, 7, 11]


def test_room_is_kept_for_stages_to_come():
    """Layers 1 to 7 hold three stages at gap 3 only as 1, 4, 7, wherever the peak lies."""
    assert shift_layers([0, 0, 0, 50, 0, 0, 0, 0], [1.0] * 8, 3, 3) == [1, 4, 7]


def test_a_budget_draws_the_first_stage_forward():
    """Layers in front of the first stage spend at most three quarters of the budget."""
    assert deepest_first(0.22, 32) == 5
    assert deepest_first(0.05, 8) == 1
    late = [0, 0, 0, 0, 0, 0, 10, 50, 20, 0, 60, 0]
    assert shift_layers(late, FLAT, 2, 2) == [7, 10]
    assert shift_layers(late, FLAT, 2, 2, deepest_first=3) == [3, 10]
    assert shift_layers(CHANGED, FLAT, 2, 2, deepest_first=4) == [3, 8]


def test_exactly_as_many_stages_as_asked():
    """More maxima than stages, fewer, and none at all."""
    for stages in range(1, 7):
        assert len(shift_layers(CHANGED, FLAT, stages, 2)) == stages
    assert shift_layers([0] * 12, FLAT, 1, 2) == [6]
    assert shift_layers([0] * 12, FLAT, 3, 2) == [3, 6, 9]
    assert shift_layers([0, 9, 8, 7, 6, 5, 4, 3], [1.0] * 8, 2, 2) == [1, 6]


def test_balance_rises_with_the_attention_behind():
    """Even attention gives even steps; attention that is mostly spent early gives an early rise."""
    even = calibrated_stages([0, 9, 0, 9, 0, 9, 0, 0], [1.0] * 8, stages=3, **RULE)
    assert even == [
        {"site": "llm.layer.1", "keep": "fit", "balance": 0.6},
        {"site": "llm.layer.3", "keep": "fit", "balance": 0.8},
        {"site": "llm.layer.5", "keep": "fit", "balance": 1.0},
    ]
    early = [1.0, 3.0, 3.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    stages = shift_layers([0, 9, 0, 9, 0, 9, 0, 0], early, 3, 2)
    weights = [s["balance"] for s in calibrated_stages([0, 9, 0, 9, 0, 9, 0, 0], early, stages=3, **RULE)]
    mass = sum(early[stages[0] : stages[1]]) / sum(early[stages[0] : stages[2]])
    assert weights == [0.6, round(0.6 + 0.4 * mass, 2), 1.0]
    assert calibrated_stages(CHANGED, FLAT, stages=1, **RULE)[0]["balance"] == 0.8
    assert [s["balance"] for s in calibrated_stages(CHANGED, [0.0] * 12, stages=3, **RULE)] == [0.6, 0.8, 1.0]


def test_withdrawing_last():
    """The last stage keeps nothing and chooses nothing; those before it rise to the full balance."""
    stages = calibrated_stages(CHANGED, FLAT, stages=3, **RULE | {"withdraw_last": True})
    assert [s["keep"] for s in stages] == ["fit", "fit", 0]
    assert [s.get("balance") for s in stages] == [0.6, 1.0, None]
    Schedule.from_config(stages)


def test_budget_is_met_by_halving():
    """Counts are solved for the mean over layers; each stage keeps half of the one before."""
    stages = Schedule.from_config(calibrated_stages(CHANGED, FLAT, stages=3, **RULE))
    solved = solve_fit(stages, 576, 12, 230)
    keeps = [stage.keep for stage in solved]
    assert solved.tokens_avg(576, 12) == pytest.approx(230, abs=0.5)
    assert keeps[1] == pytest.approx(keeps[0] / 2, abs=3)
    assert keeps[2] == pytest.approx(keeps[0] / 4, abs=3)


def test_uniform():
    """Evenly spread, never at layer 0."""
    assert layers(uniform_stages(3, 32)) == [8, 16, 24]
    assert layers(uniform_stages(3, 8)) == [2, 4, 6]
    assert layers(uniform_stages(7, 8)) == [1, 2, 3, 4, 5, 6, 7]
    assert layers(uniform_stages(1, 2)) == [1]
    assert "balance" not in uniform_stages(2, 8)[0]
    assert [s["balance"] for s in uniform_stages(3, 8, balance=BALANCE)] == [0.6, 0.8, 1.0]
    solved = solve_fit(Schedule.from_config(uniform_stages(3, 8, balance=BALANCE)), 144, 8, 60)
    assert solved.tokens_avg(144, 8) == pytest.approx(60, abs=0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": 0}, "stages is 0, so nothing is pruned"),
        ({"stages": 9}, r"12 layers have room for 6 with schedule.min_gap=2. Set stages to 6 or fewer"),
        ({"min_gap": 0}, "schedule.min_gap is 0"),
        ({"balance": {"first": 0.9, "last": 0.1}}, "schedule.balance is"),
        ({"balance": {"low": 0.1}}, "Give first and last"),
        ({"stages": 1, "withdraw_last": True}, "withdraws all visual tokens at the only stage"),
        ({"attention": [1.0]}, "change curve has 12 layers, the attention curve 1"),
    ],
)
def test_messages(change, message):
    """What cannot be is refused, with what to change."""
    rule = {"changed": CHANGED, "attention": FLAT, "stages": 3} | RULE | change
    with pytest.raises(ValueError, match=message):
        calibrated_stages(**rule)


def test_messages_of_uniform_stages():
    """The same for stages without calibration."""
    with pytest.raises(ValueError, match="stages is 0"):
        uniform_stages(0, 8)
    with pytest.raises(ValueError, match="8 layers have room for 7"):
        uniform_stages(8, 8)
