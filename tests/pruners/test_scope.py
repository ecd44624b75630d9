"""SCOPE: gains and picks by hand, and a sum that no other greedy step raises more."""

from dataclasses import replace

import pytest
import torch
from hand import row, signals, stage, tokens

from btp.core.schedule import Schedule
from btp.core.signals import Signal, Signals
from btp.ops.coverage import coverage_set, in_full, lazily
from btp.pruners.scope import Scope

CLS = Signal("attention", "vision.feature", "cls", "probs")
OUTPUT = "vision.output"
X = torch.tensor([[1.0, 0], [0.6, 0.8], [0, 2], [-1, 0]])  # cosines: 0-1 .6, 1-2 .8, 1-3 -.6, others 0 or -1


def picks(weight, k, combine="multiply"):
    return coverage_set(X[None], torch.tensor([weight]), [k], combine).tolist()[0]


def test_coverage_by_hand():
    """First gains 1.6, 2.4, 1.8, 1: token 1. It covers 0.6, 1, 0.8, 0, so that the others add 0.4, 0.2, 1: token 3."""
    assert picks([1.0] * 4, 4) == [1, 3, 0, 2]


def test_saliency_times_gain_by_hand():
    """Weights 4, 1, 2, 1: 6.4, 2.4, 3.6, 1: token 0. It covers 1, 0.6, 0, 0: 0.4 + 0.8, 0.2 + 1 of 2, 1 of 3."""
    assert picks([4.0, 1, 2, 1], 2) == [0, 2]  # 1.2, 1.2 x 2 = 2.4, 1
    assert picks([4.0, 1, 0, 1], 3) == [0, 1, 3]  # 1.2, 0, 1; then 3 adds 1, and 2 weighs nothing
    assert picks([0.0, 0, 0, 3], 1, "add") == [3]  # 1.6, 2.4, 1.8, 4


def test_every_pick_raises_the_sum_most():
    """Against the sum of highest cosines, computed anew for every candidate."""
    torch.manual_seed(0)
    x = torch.randn(1, 10, 4)
    unit = torch.nn.functional.normalize(x[0].double(), dim=-1)
    alike = unit @ unit.mT
    found = coverage_set(x, torch.ones(1, 10), [6])[0].tolist()
    for n in range(1, 7):
        chosen = found[: n - 1]
        sums = {i: float(alike[[*chosen, i]].amax(0).clamp(min=0).sum()) for i in range(10) if i not in chosen}
        assert found[n - 1] == max(sums, key=sums.get)


@pytest.mark.parametrize("combine", ["multiply", "add"])
@pytest.mark.parametrize("copies", [1, 5])
def test_asking_few_picks_as_asking_all(combine, copies):
    """The way of the CPU and that of a device, on tokens that differ and on copies, until nothing adds anything."""
    torch.manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(60, 7), dim=-1).repeat(copies, 1)
    alike, weight = x @ x.T, torch.rand(len(x)).round(decimals=1)
    taken = torch.zeros(1, len(x), dtype=torch.bool)
    full = in_full(alike[None], weight[None], 50, combine, taken)[0]
    assert torch.equal(lazily(alike, weight, 50, combine), full)
    assert torch.equal(
        coverage_set(x[None], -weight[None], [9], "multiply")[0],
        in_full(alike[None], -weight[None], 9, "multiply", taken)[0],
    )


def test_attention_decides_among_copies():
    """Two copies: the more salient one is taken, the other adds nothing and comes last."""
    seen = replace(tokens(3), hidden=torch.tensor([[[1.0, 0], [2, 0], [0, 1]]]))
    values = Signals({CLS: torch.tensor([0.1, 0.3, 0.05]).view(1, 1, 1, 3)})
    method = Scope(alpha=1.0, combine="multiply", score="cls")
    assert method.select(seen, values, stage(OUTPUT, 2)).keep.tolist() == [[1, 2]]
    alone = Scope(alpha=0.0, combine="multiply", score="cls")
    assert alone.select(seen, values, stage(OUTPUT, 2)).keep.tolist() == [[0, 2]]
    torch.testing.assert_close(
        Scope(alpha=2.0, combine="multiply", score="cls").explain(seen, values, stage(OUTPUT, 2))["saliency"],
        torch.tensor([[0.01, 0.09, 0.0025]]),
    )


def test_pictures_do_not_see_each_other():
    """Each as alone; a picture of which nothing stays has no pick."""
    method = Scope(alpha=1.0, combine="multiply", score="received")
    seen, at = tokens(30, 17, 9, 2), stage(OUTPUT, 0.4)
    values = signals(method, seen, at)
    keep = method.select(seen, values, at).keep
    for b, k in enumerate((12, 6, 3, 0)):
        alone, its = row(b, seen, values)
        assert method.select(alone, its, at).keep[0].tolist() == keep[b, :k].tolist()


def test_messages():
    """Settings out of range and other sites are refused."""
    with pytest.raises(ValueError, match=r"pruner.method.alpha is -1. Write a number, 0 or more"):
        Scope(alpha=-1, combine="multiply", score="cls")
    with pytest.raises(ValueError, match=r"pruner.method.combine is 'max'. Choose from: multiply, add"):
        Scope(alpha=1, combine="max", score="cls")
    with pytest.raises(ValueError, match=r"pruner.method.combine is 'max'"):
        coverage_set(X[None], torch.ones(1, 4), [1], "max")
    with pytest.raises(ValueError, match=r"asked for \(5,\) of 4 tokens"):
        coverage_set(X[None], torch.ones(1, 4), [5])
    with pytest.raises(ValueError, match=r"schedule.0.site is llm.layer.2, but pruner 'scope' chooses once"):
        Scope(alpha=1, combine="add", score="cls").check(Schedule.from_config([{"site": "llm.layer.2", "keep": 0.5}]))
