"""VisPruner: rounds of removing duplicates by hand, beside the patches with most attention."""

from dataclasses import replace

import pytest
import torch
from hand import row, signals, stage, tokens

from btp.core.schedule import Schedule
from btp.core.signals import Signal, Signals
from btp.ops.duplicates import by_table, without_duplicates
from btp.pruners.vispruner import VisPruner

CLS = Signal("attention", "vision.feature", "cls", "probs")
OUTPUT = "vision.output"
ANGLES = [0, 100, 10, 140, 90, 200]  # of six tokens, in degrees


def turned(angles):
    radians = torch.deg2rad(torch.tensor(angles, dtype=torch.float32))
    return torch.stack([radians.cos(), radians.sin()], dim=-1)[None]


def left(angles, k, step, order=None):
    order = torch.tensor([order or list(range(len(angles)))])
    found = without_duplicates(turned(angles), order, [len(angles)], [k], step)
    return found[0].nonzero().flatten().tolist()


def test_a_round_by_hand():
    """Line 0 100 10 140 90 200: 0, 10, 90 are compared with 100, 140, 200, nearest 100, 90, 10 degrees away."""
    assert left(ANGLES, 5, 1) == [0, 1, 2, 3, 5]  # 90 has 100
    assert left(ANGLES, 4, 2) == [0, 1, 3, 5]  # and 10, whose nearest is 90 degrees off, goes before 0


@pytest.mark.parametrize(("copies", "noise"), [(1, 0.0), (9, 0.0), (9, 0.1)])
def test_lists_leave_what_the_table_leaves(copies, noise):
    """The way of the CPU and that of a device, with rows of unequal length and until few are left."""
    torch.manual_seed(0)
    x = torch.randn(2, 90 // copies, 5).repeat(1, copies, 1) + noise * torch.randn(2, 90 // copies * copies, 5)
    sizes, rest = [x.shape[1], 60], [9, 60]
    order = torch.stack([torch.randperm(x.shape[1]) for _ in range(2)])
    unit = torch.nn.functional.normalize(x, dim=-1)
    table = by_table(unit @ unit.mT, order, sizes, rest, 8)
    assert torch.equal(without_duplicates(x, order, sizes, rest, 8), table)
    assert table.sum(1).tolist() == rest


def test_the_next_round_halves_the_new_line():
    """Behind the first round: 10, 0 (the more alike first), then 100, 140, 200.

    Now 10, 100, 200 are compared with 0 and 140, from which they lie 10, 40, 60 degrees: 10 goes. Then 100, 200 stand
    in front of 0, 140, and 100 and 0 are compared with 200 and 140.
    """
    assert left(ANGLES, 4, 1) == [0, 1, 3, 5]
    assert left(ANGLES, 3, 1) == [0, 3, 5]  # 100 lies 40 degrees from 140, 0 lies 140 from it


def test_the_order_decides_who_is_compared():
    """Of two copies the one at an even place goes."""
    assert left([0, 0, 90, 180], 3, 1) == [1, 2, 3]
    assert left([0, 0, 90, 180], 3, 1, order=[1, 0, 2, 3]) == [0, 2, 3]


def test_down_to_nothing():
    """One token left of many, and none at all."""
    assert len(left(ANGLES, 1, 8)) == 1
    assert left(ANGLES, 0, 8) == []


def test_the_choice_by_hand():
    """Attention takes token 3; of the others, by falling attention 5 0 1 4 2, one round takes 1 away."""
    attention = torch.tensor([0.2, 0.15, 0.05, 0.3, 0.1, 0.2])
    angles = [0, 91, 45, 10, 90, 180]
    seen = replace(tokens(6), hidden=turned(angles))
    values = Signals({CLS: attention.view(1, 1, 1, 6)})
    method = VisPruner(important=0.25, step=8, score="cls")
    # line: 0 (0.2, first of equals), 5, 1, 4, 2: compared are 0, 1, 2 with 5, 4: 90, 1, 45 degrees
    assert method.select(seen, values, stage(OUTPUT, 5)).keep.tolist() == [[0, 2, 3, 4, 5]]
    rules = method.explain(seen, values, stage(OUTPUT, 5))
    assert rules["important"][0].tolist() == [False] * 3 + [True] + [False] * 2
    assert rules["diverse"][0].nonzero().flatten().tolist() == [0, 2, 4, 5]


@pytest.mark.parametrize("important", [0.0, 1.0])
def test_one_rule_alone(important):
    """All by attention is FasterVLM's choice; none by attention still starts from its order."""
    seen = tokens(20)
    method = VisPruner(important=important, step=3, score="cls")
    values = signals(method, seen, stage(OUTPUT, 7))
    kept = method.select(seen, values, stage(OUTPUT, 7)).keep[0].tolist()
    best = values[CLS].mean((1, 2))[0].topk(7).indices.sort().values.tolist()
    assert (kept == best) == (important == 1.0)


def test_rows_of_unequal_length():
    """Each picture as alone, also where rounds end at different times."""
    method = VisPruner(important=0.4, step=4, score="received")
    seen, at = tokens(40, 23, 9, 2), stage(OUTPUT, 0.3)
    values = signals(method, seen, at)
    keep = method.select(seen, values, at).keep
    for b, k in enumerate((12, 6, 2, 0)):
        alone, its = row(b, seen, values)
        assert method.select(alone, its, at).keep[0].tolist() == keep[b, :k].tolist()


def test_messages():
    """Settings out of range and other sites are refused."""
    good = {"important": 0.5, "step": 8, "score": "cls"}
    for wrong, message in (
        ({"important": 1.5}, r"pruner.method.important is 1.5. Write a share"),
        ({"important": True}, r"pruner.method.important is True"),
        ({"step": 0}, r"pruner.method.step is 0. Write how many tokens go in a round"),
        ({"score": "text"}, r"pruner.method.score is 'text'. Choose from: cls, received"),
    ):
        with pytest.raises(ValueError, match=message):
            VisPruner(**good | wrong)
    with pytest.raises(ValueError, match=r"schedule.0.site is llm.layer.2, but pruner 'vispruner' chooses once"):
        VisPruner(**good).check(Schedule.from_config([{"site": "llm.layer.2", "keep": 0.5}]))
