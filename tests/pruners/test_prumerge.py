"""PruMerge: who stays, what flows in and what the extra token holds, by hand; quartiles by hand."""

from dataclasses import replace

import pytest
import torch
from checked_selection import check_selection
from hand import row, signals, stage, tokens

from btp.core.schedule import Schedule
from btp.core.signals import Signal, Signals
from btp.ops.outliers import outliers_above
from btp.pruners.prumerge import PruMerge

SETTINGS = {
    "score": "cls",
    "layer": "vision.feature",
    "count": "exact",
    "spatial": 0.0,
    "neighbours": 1,
    "merge": "official",
    "extra": True,
    "order": "official",
}
FEATURE, OUTPUT = "vision.feature", "vision.output"
ATTENTION = [0.1, 0.4, 0.1, 0.05, 0.3, 0.05]
KEYS = [[1.0, 0], [1, 0.1], [0, 1], [1, 0.3], [0.1, 1], [-1, 0]]
HIDDEN = [[1.0, 0], [0, 1], [2, 0], [0, 2], [4, 0], [0, 4]]


def prumerge(**changed):
    return PruMerge(**SETTINGS | changed)


def example(attention=ATTENTION):
    seen = replace(tokens(6), hidden=torch.tensor(HIDDEN)[None])
    values = {
        Signal("attention", FEATURE, "cls", "probs"): torch.tensor(attention).view(1, 1, 1, 6),
        Signal("keys", FEATURE): torch.tensor(KEYS).view(1, 1, 6, 2),
    }
    return seen, Signals(values)


def test_example():
    """Patches 1 and 4 stay: 1 takes in 0.1 x patch 0, 4 takes in 0.1 x patch 2; the rest flows into one token."""
    selection = prumerge().select(*example(), stage(OUTPUT, 3))
    assert selection.keep.tolist() == [[1, 4, 5]]  # the extra one stands where patch 5 was
    assert selection.ordered
    assert selection.merge.target.tolist() == [[5, 1, 5, 5, 4, 5]]
    extra = [0.1 * 1 + 0.1 * 2, 0.05 * 2 + 0.05 * 4]
    torch.testing.assert_close(selection.states[0], torch.tensor([[0.1, 1], [4.2, 0], extra]))


def test_example_with_means():
    """1: (0.4 (0, 1) + 0.1 (1, 0)) / 0.5; the extra one is a mean as well."""
    selection = prumerge(merge="mean").select(*example(), stage(OUTPUT, 3))
    four = (0.3 * 4 + 0.1 * 2) / 0.4
    torch.testing.assert_close(selection.states[0], torch.tensor([[0.2, 0.8], [four, 0], [1.0, 1.0]]))


def test_example_of_plus():
    """One by attention, two at even distances of 0 2 3 4 5 (every second, from the first on), one extra."""
    selection = prumerge(spatial=0.67).select(*example(), stage(OUTPUT, 4))
    assert selection.keep.tolist() == [[1, 0, 3, 5]]
    raster = prumerge(spatial=0.67, order="raster").select(*example(), stage(OUTPUT, 4))
    assert raster.keep.tolist() == [[0, 1, 3, 5]]
    assert not raster.ordered
    torch.testing.assert_close(raster.states[0, [1, 0, 2, 3]], selection.states[0])


def test_kept_patches_flow_too():
    """With two neighbours patch 1 takes in 0 and 3; each of them takes in kept ones where those are nearest."""
    selection = prumerge(neighbours=2, extra=False).select(*example(), stage(OUTPUT, 2))
    assert selection.keep.tolist() == [[1, 4]]
    assert selection.merge.target.tolist() == [[-1, 1, -1, -1, 4, -1]]
    one = [0.1, 1 + 0.05 * 2]
    four = [4 + 0.1 * 2, 0.05 * 2]  # of 4: patch 2, then 3 (cosine 0.38; 1 has 0.2)
    torch.testing.assert_close(selection.states[0], torch.tensor([one, four]))


def test_neither_neighbours_nor_extra_is_pruning():
    """Then the kept patches are as they were."""
    selection = prumerge(neighbours=0, extra=False, order="raster").select(*example(), stage(OUTPUT, 2))
    assert selection.keep.tolist() == [[1, 4]]
    assert selection.states[0].tolist() == [HIDDEN[1], HIDDEN[4]]


def test_quartiles_by_hand():
    """1 2 3 4 10: quartiles 2 and 4, so that more than 7 stands out; padding counts for nothing."""
    x = torch.tensor([[3.0, 10, 1, 2, 4, 99], [1, 1, 1, 1, 2, 2]])
    valid = torch.arange(6) < torch.tensor([[5], [6]])
    assert outliers_above(x, valid)[0].tolist() == [False, True] + [False] * 4
    # 1 1 1 1 2 2: the third quartile lies at 3.75, which is 1.75, the first is 1: nothing above 2.875
    assert not outliers_above(x, valid)[1].any()


def test_as_many_as_stand_out():
    """Attention 0.1 0.9 0.1 0.1 0.1 0.1: one patch and the extra token, whatever the stage says."""
    method = prumerge(count="outliers")
    selection = method.select(*example([0.1, 0.9, 0.1, 0.1, 0.1, 0.1]), stage(OUTPUT, 4))
    assert method.adaptive
    assert selection.counts == (2,)
    assert selection.keep.tolist() == [[1, 5]]
    nothing = method.select(*example([0.1] * 6), stage(OUTPUT, 4))
    assert nothing.keep.tolist() == [[0, 5]]  # the most attended one


def test_outliers_with_spatial_ones():
    """Six patches, one outlier: the distance is 6 // 1 // 3 = 2, so 0, 2 and 4 join it."""
    selection = prumerge(count="outliers", spatial=0.75).select(
        *example([0.1, 0.9, 0.1, 0.1, 0.1, 0.1]), stage(OUTPUT, 1)
    )
    assert selection.keep.tolist() == [[1, 0, 2, 4, 5]]
    assert selection.counts == (5,)


def test_joined_heads_by_hand():
    """One softmax over the sum of the heads' products, scaled by the root of both heads' size."""
    seen = tokens(3)
    queries = torch.tensor([[[1.0], [0], [0], [0]], [[2.0], [0], [0], [0]]])[None]  # scaled by 1: heads of size 1
    keys = torch.tensor([[[0.0], [1], [0], [2]], [[0.0], [0], [1], [0]]])[None]
    method = prumerge(score="joined", neighbours=0, extra=False)
    at = stage(OUTPUT, 1)
    asked = method.needs(at)
    values = Signals({asked[0]: queries, asked[1]: keys, asked[2]: keys[:, :, 1:]})
    selection = method.select(seen, values, at)
    logits = torch.tensor([0.0, 1, 2, 2]) / 2**0.5
    torch.testing.assert_close(selection.scores[0], logits.softmax(0)[1:])
    assert selection.keep.tolist() == [[1]]


@pytest.mark.parametrize("changed", [{}, {"spatial": 0.75}, {"order": "raster"}, {"merge": "mean"}, {"extra": False}])
def test_pictures_do_not_see_each_other(changed):
    """Ragged pictures: each as alone, states too; one of which all stays is left alone."""
    method, seen, at = prumerge(**changed, neighbours=3), tokens(40, 23, 9, 3), stage(OUTPUT, 9)
    values = signals(method, seen, at)
    selection = method.select(seen, values, at)
    check_selection(selection, (9, 9, 9, 3), seen.host_alive, "prumerge", at.site)
    assert torch.equal(selection.states[2], seen.hidden[2, :9])
    for b, k in enumerate((9, 9, 9, 3)):
        alone, its = row(b, seen, values)
        mine = method.select(alone, its, at)
        assert mine.keep[0].tolist() == selection.keep[b, :k].tolist()
        if mine.states is not None:
            torch.testing.assert_close(mine.states[0], selection.states[b, :k])


def test_messages():
    """Settings out of range, other sites, a new order where positions stay."""
    for wrong, message in (
        ({"score": "text"}, r"pruner.method.score is 'text'. Choose from: cls, received, joined"),
        ({"count": "all"}, r"pruner.method.count is 'all'. Choose from: exact, outliers"),
        ({"spatial": 1.0}, r"pruner.method.spatial is 1.0. Write a share of the kept patches in \[0, 1\)"),
        ({"neighbours": -1}, r"pruner.method.neighbours is -1. Write a number of patches"),
        ({"extra": 1}, r"pruner.method.extra is 1. Write true or false"),
    ):
        with pytest.raises(ValueError, match=message):
            prumerge(**wrong)
    for method, at, message in (
        (prumerge(), {"site": "llm.layer.2"}, r"schedule.0.site is llm.layer.2, but pruner 'prumerge' chooses once"),
        (prumerge(), {"site": OUTPUT}, r"schedule.0.positions is original, .* to renumber, or .*order=raster"),
        (prumerge(score="joined", order="raster"), {"site": "llm.input"}, r"score=joined is computed per picture"),
    ):
        with pytest.raises(ValueError, match=message):
            method.check(Schedule.from_config([{"keep": 0.5, **at}]))
    prumerge(order="raster").check(Schedule.from_config([{"site": "llm.input", "keep": 0.5}]))
