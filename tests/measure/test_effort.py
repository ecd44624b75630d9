"""What a measurement will take, held against what one did; counts by formula, against those of a run."""

import pytest
import tiny
import torch
from test_cost import CUT, Alike, subject, ticks

from btp.core.schedule import Schedule
from btp.engine.attach import attach
from btp.measure.architecture import architecture
from btp.measure.cost import measure
from btp.measure.duration_estimate import TRIED_TOKENS, seconds_of_rounds, times, try_speed
from btp.measure.planned import planned_costs
from btp.measure.roofline import Device, Times
from btp.measure.segments import square
from btp.measure.timed_pruner import timed


@pytest.mark.parametrize("repeats", [2, 5])
def test_as_many_runs_are_added_up_as_are_made(repeats):
    """Every first token counts one second, every further one a hundred: the sum names how often each was made."""
    log = []
    lvlm, what = subject([[2, "i", 5]], log)
    pruner = timed(Alike())
    measure(
        what, lambda: attach(lvlm, pruner, CUT), pruner=pruner, new_tokens=4, repeats=repeats, warmup=1, now=ticks()
    )
    with attach(lvlm):
        what.generate(1)  # as btp.runner.evaluation.cost looks at the plain cache
    found = seconds_of_rounds(Times(0, 0, 1, 100), Times(0, 0, 1, 100), repeats=repeats, warmup=1, output=4)
    assert found == len(log) + 100 * sum(n - 1 for n in log)


def test_the_speed_is_that_of_the_fastest_try():
    """A clock that ticks once a reading: every try takes a second."""
    stack = architecture(tiny.llava().config).decoder
    found = try_speed(torch.device("cpu"), torch.float32, stack, ticks())
    assert found.flops == 2 * TRIED_TOKENS * stack.hidden * stack.ffn
    assert found.bandwidth == 4 * stack.hidden * stack.ffn


def test_the_tower_is_paid_for_every_prompt():
    sizes = architecture(tiny.llava().config)
    shape = {"batch": 3, "output": 4, "itemsize": 4}
    found = times(Device(2.0, 1e12), sizes, [9] * 4, 3, tower=10.0, **shape)
    assert found.vision == 3 * 10 / 2
    assert times(Device(2.0, 1e12), sizes, [2] * 4, 3, tower=10.0, **shape).prefill < found.prefill


def planned(schedule, sizes=None):
    """Of the tiny model, one picture of 9 visual tokens and 7 of text."""
    sizes = sizes or architecture(tiny.llava().config)
    return planned_costs(sizes, schedule, 9, 7, torch.float32, square(sizes.vision, 1))


@pytest.mark.parametrize("schedule", [Schedule(), CUT])
def test_what_is_planned_is_what_runs(schedule):
    """Counts of a run with a pruner, but for what choosing takes."""
    lvlm, what = subject([[2, "i", 5]])
    pruner = timed(Alike()) if schedule else None
    rounds = {"new_tokens": 2, "repeats": 1, "warmup": 0}
    ran = measure(what, lambda: attach(lvlm, pruner, schedule), pruner=pruner, **rounds)
    found = planned(schedule)
    assert found["tokens_avg"] == ran["tokens_avg"]
    assert found["flops_visual_pdrop"] == ran["flops_visual_pdrop"]
    assert found["flops_prefill"] == ran["flops_prefill"] - ran["flops_selection"] - ran["flops_signals"]
    assert found["kv_mib"] == ran["kv_mib"]


def test_a_cut_behind_the_tower_saves_the_projector():
    """Tower whole, projector and decoder short; between layers of the tower no formula is given."""
    sizes = architecture(tiny.llava().config)
    behind = planned(Schedule.from_config([{"site": "vision.output", "keep": 4}]))
    front = planned(Schedule.from_config([{"site": "llm.input", "keep": 4}]))
    saved = 2 * (9 - 4) * sum(a * b for a, b in sizes.projector)
    assert behind["flops_prefill"] == front["flops_prefill"] - saved
    inside = planned(Schedule.from_config([{"site": "vision.layer.1", "keep": 4}]))
    assert inside["flops_prefill"] is None
    assert inside["kv_mib"] == front["kv_mib"]
