"""VFlowOpt: its limits, what is never pruned, several images, exact counts, and its messages."""

from dataclasses import replace

import pytest
import torch
from checked_selection import check_selection
from hand import row, signals, stage, tokens

from btp.core.schedule import Schedule, Stage
from btp.core.signals import Signal, Signals
from btp.core.topk import top_k
from btp.ops.merge import merge_states
from btp.pruners.vflowopt import VFlowOpt

SETTINGS = {
    "t": 1.1,
    "alpha": 0.0,
    "m": 2.0,
    "rows": "mean",
    "entropy": "paper",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.25, 0.25, 0.25),
    "recycle": True,
    "recycle_several": False,
    "exact": True,
}
INPUT = stage("llm.input", 0.5)


def vflowopt(**changed):
    return VFlowOpt(**SETTINGS | changed)


def given(worth, **changed):
    """The method with a map that is known: [B, N]."""

    class Given(VFlowOpt):
        def importance(self, tokens, signals, stage):
            return torch.as_tensor(worth)[:, : tokens.valid.shape[1]].masked_fill(tokens.coord[..., 1] < 0, 1.0)

    return Given(**SETTINGS | changed)


def test_without_recycling_it_is_top_k():
    """One map, the highest stay; the same in front of a layer."""
    pruner, seen = vflowopt(recycle=False), tokens(16, 9)
    values = signals(pruner, seen, INPUT)
    worth = pruner.importance(seen, values, INPUT)
    wanted = top_k(worth, (8, 4), seen.valid)
    selection = pruner.select(seen, values, INPUT)
    assert torch.equal(selection.keep, wanted)
    assert selection.merge is None
    assert torch.equal(vflowopt().select(seen, values, stage("llm.layer.3", 0.5)).keep, wanted)


def test_the_worked_example_with_official_counts():
    """The card's 4 x 4 picture: eight stay, of which four hold others; the next stage leaves five."""
    worth = [[0.9, 0.1, 0.2, 0.8, 0.3, 0.05, 0.15, 0.25, 0.7, 0.12, 0.6, 0.02, 0.4, 0.35, 0.11, 0.5]]
    seen = replace(tokens(16), hidden=torch.arange(16.0)[None, :, None])
    selection = given(worth, exact=False).select(seen, Signals(), INPUT)
    assert selection.counts == (8,)
    assert selection.keep.tolist() == [[0, 3, 4, 7, 8, 10, 12, 15]]
    merged = merge_states(seen.hidden, selection.keep, selection.merge)[0, :, 0]
    wanted = torch.tensor([0, 3, 3.444444, 5.083333, 8, 10, 11.988506, 14.698413])
    torch.testing.assert_close(merged, wanted, atol=1e-5, rtol=0)
    alive = selection.keep[0]
    later = replace(seen, hidden=seen.hidden[:, alive], valid=seen.valid[:, alive], coord=seen.coord[:, alive])
    left = given([torch.tensor(worth[0])[alive].tolist()]).select(
        replace(later, host_alive=(8,)), Signals(), stage("llm.layer.9", 5)
    )
    assert alive[left.keep[0]].tolist() == [0, 3, 8, 10, 15]


@pytest.mark.parametrize("side", [1.0, 1.7, 3.0, 24.0])
@pytest.mark.parametrize("keep", [0, 1, 3, 8, 15, 16])
def test_exact_counts(side, keep):
    """Whatever the cells, exactly the stage's count stays; the released way comes to more or less."""
    at = stage("llm.input", keep)
    if keep == 0:
        return
    seen = tokens(16, 9, 5)
    pruner = vflowopt(m=side)
    values = signals(pruner, seen, at)
    counts = seen.keep_counts(at)
    selection = pruner.select(seen, values, at)
    assert selection.counts is None
    check_selection(selection, counts, seen.host_alive, "vflowopt", at.site)
    official = vflowopt(m=side, exact=False)
    selection = official.select(seen, values, at)
    assert official.adaptive
    check_selection(selection, selection.counts, seen.host_alive, "vflowopt", at.site)
    for b, n in enumerate(seen.host_alive):
        if counts[b] == n:
            assert selection.counts[b] == n


def test_recycled_tokens_hold_their_cell():
    """Every pruned token on the grid flows into one of its own cell; kept ones flow into themselves."""
    seen = tokens(16, 9)
    selection = vflowopt(m=2.0).select(seen, signals(vflowopt(), seen, INPUT), INPUT)
    target = selection.merge.target
    for b, n in enumerate((16, 9)):
        kept = set(selection.keep[b].tolist()) - {-1}
        cell = (seen.coord[b, :n, 1:] // 2).tolist()
        for i in range(n):
            into = int(target[b, i])
            assert into in kept
            assert cell[into] == cell[i]
        assert all(int(target[b, i]) == i for i in kept)
        assert (target[b, n:] == -1).all()


def test_newlines_are_never_pruned_before_all_others_are():
    """Tokens off the grid are worth 1 and rank above any map, whose sum form may exceed 1."""
    seen = tokens(16)
    off = torch.zeros(1, 16, dtype=torch.bool)
    off[0, [3, 7, 11, 15]] = True
    seen = replace(seen, coord=seen.coord.masked_fill(off[..., None], -1))
    pruner = given(torch.full((1, 16), 2.5))
    for at in (INPUT, stage("llm.layer.4", 5)):
        assert {3, 7, 11, 15} <= set(pruner.select(seen, Signals(), at).keep[0].tolist())
    few = pruner.select(seen, Signals(), stage("llm.input", 2))
    check_selection(few, (2,), (16,), "vflowopt", "llm.input")
    assert few.keep.tolist() == [[3, 7]]


def test_several_images_keep_as_many_each_and_recycle_nothing():
    """Two images of eight: four each, though the first is worth more; one pool where it is asked for."""
    seen = tokens(16)
    image = (torch.arange(16) >= 8).long()[None]
    seen = replace(seen, image=image, coord=torch.cat([seen.coord[:, :8]] * 2, dim=1))
    worth = torch.arange(16.0).flip(0)[None]
    selection = given(worth).select(seen, Signals(), INPUT)
    assert selection.keep.tolist() == [[0, 1, 2, 3, 8, 9, 10, 11]]
    dropped = sorted(set(range(16)) - set(selection.keep[0].tolist()))
    assert (selection.merge.target[0, dropped] == -1).all()
    pooled = given(worth, recycle_several=True).select(seen, Signals(), INPUT)
    assert (pooled.keep[0] < 8).sum() > 4
    assert (pooled.merge.target[0] >= 0).all()
    later = given(worth).select(seen, Signals(), stage("llm.layer.9", 4))
    assert later.keep.tolist() == [[0, 1, 2, 3]]


def test_frames_are_ranked_together_and_recycle_nothing():
    seen = tokens(24)
    coord = torch.cat([seen.coord[:, :8]] * 3, dim=1)
    coord[:, 8:16, 0], coord[:, 16:, 0] = 1, 2
    selection = given(torch.arange(24.0)[None]).select(replace(seen, coord=coord), Signals(), INPUT)
    assert selection.keep.tolist() == [list(range(12, 24))]
    assert (selection.merge.target[0, :12] == -1).all()


def test_a_picture_and_its_tiles_are_two_regions_of_one_image():
    """Frames 0 and 1 alone: each cell of either gives one back."""
    seen = tokens(16)
    coord = torch.cat([seen.coord[:, :8]] * 2, dim=1)
    coord[:, 8:, 0] = 1
    selection = given(torch.arange(16.0)[None]).select(replace(seen, coord=coord), Signals(), INPUT)
    assert (selection.merge.target[0] >= 0).all()
    assert set(selection.merge.target[0, :8].tolist()) <= set(range(8))
    assert set(selection.merge.target[0, 8:].tolist()) <= set(range(8, 16))


def test_one_row_with_two_images_does_not_change_the_other():
    """Rows decide for themselves whether they recycle."""
    seen = tokens(16, 16)
    image = torch.stack([(torch.arange(16) >= 8).long(), torch.zeros(16, dtype=torch.long)])
    coord = seen.coord.clone()
    coord[0, 8:] = coord[0, :8]
    seen = replace(seen, image=image, coord=coord)
    worth = torch.rand(2, 16)
    both = given(worth).select(seen, Signals(), INPUT)
    alone = given(worth[1:]).select(tokens(16), Signals(), INPUT)
    assert torch.equal(both.keep[1], alone.keep[0])
    assert torch.equal(both.merge.target[1], alone.merge.target[0])
    assert (both.merge.target[0] == -1).sum() == 8


def test_pictures_are_found_by_picture_and_slot():
    """Tokens take the worth of their own patch, whichever row and place they have."""
    pruner, seen = vflowopt(recycle=False), tokens(8, 8)
    values = signals(pruner, seen, INPUT)
    worth = pruner.importance(seen, values, INPUT)
    moved = replace(seen, picture=1 - seen.picture, slot=seen.slot.flip(1))
    torch.testing.assert_close(pruner.importance(moved, values, INPUT), worth.flip(0, 1))
    some = {k: getattr(seen, k)[:, 2:] for k in ("picture", "slot", "valid", "coord", "image")}
    torch.testing.assert_close(pruner.importance(replace(seen, **some), values, INPUT), worth[:, 2:])


def test_entropy_adds_its_weight():
    """A map without class token sums to 1 + alpha; a busy picture's patch gains, a flat one's loses."""
    seen, pruner = tokens(4), vflowopt(alpha=0.5)
    pixels = torch.zeros(1, 3, 8, 8)
    pixels[:, :, 4:, 4:] = torch.randn(4, 4)
    flow = pruner.needs(INPUT)[:2]
    values = {flow[0]: torch.randn(1, 2, 4, 8), flow[1]: torch.randn(1, 2, 4, 8)}
    plain = vflowopt().importance(seen, Signals(values), INPUT)
    found = pruner.importance(seen, Signals(values | {Signal("pixels", "vision.output"): pixels}), INPUT)
    torch.testing.assert_close(plain.sum(1), torch.ones(1))
    torch.testing.assert_close(found.sum(1), torch.full((1,), 1.5))
    gain = (found - plain)[0]
    torch.testing.assert_close(gain[:3], gain[0].expand(3))
    assert gain[3] > gain[0]


def test_padded_rows_with_entropy_are_the_same_alone():
    """The softmax of the entropy runs over a picture's own patches."""
    pruner, seen = vflowopt(alpha=0.3), tokens(16, 9)
    values = signals(vflowopt(), seen, INPUT)
    pixels = torch.randn(2, 3, 16, 16)
    both = Signals({**values, Signal("pixels", "vision.output"): pixels})
    worth = pruner.importance(seen, both, INPUT)
    alone, its = row(0, seen, values)
    single = pruner.importance(alone, Signals({**its, Signal("pixels", "vision.output"): pixels[:1]}), INPUT)
    torch.testing.assert_close(worth[:1], single)


def test_kept_sets_are_nested_over_the_stages():
    """The map does not change, so each stage keeps the best of the one before."""
    pruner, seen = vflowopt(m=50.0), tokens(16)
    values = signals(pruner, seen, INPUT)
    first = pruner.select(seen, values, stage("llm.input", 9)).keep[0]
    taken = {k: getattr(seen, k)[:, first] for k in ("hidden", "index", "picture", "slot", "valid", "coord", "image")}
    later = replace(seen, **taken, host_alive=(9,))
    second = first[pruner.select(later, values, stage("llm.layer.9", 4)).keep[0]]
    worth = pruner.importance(seen, values, INPUT)[0]
    assert set(second.tolist()) == set(first[worth[first].topk(4).indices].tolist())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows": "max"}, "pruner.method.rows is 'max'. Choose from: mean, sum."),
        ({"entropy": "luma"}, "pruner.method.entropy is 'luma'. Choose from: paper, official."),
        ({"t": -1.0}, "pruner.method.t is -1.0. Write a number from 0 on."),
        ({"m": 0.5}, "pruner.method.m is 0.5. Write a number of tokens from 1 on."),
        ({"alpha": float("nan")}, "pruner.method.alpha is nan. Write a finite number."),
        ({"exact": "yes"}, "pruner.method.exact is 'yes'. Write true or false."),
        ({"recycle": None}, "pruner.method.recycle is None. Write true or false."),
        ({"recycle_several": 1}, "pruner.method.recycle_several is 1. Write true or false."),
        ({"mean": (0.5,)}, "pruner.method.mean is [0.5]. Write one number per colour channel."),
        ({"std": (1.0, 1.0)}, "pruner.method.std is [1.0, 1.0]. Write one number per colour channel."),
    ],
)
def test_settings_out_of_range(changed, message):
    with pytest.raises(ValueError) as error:
        vflowopt(**changed)
    assert str(error.value) == message


@pytest.mark.parametrize("site", ["vision.output", "vision.layer.1", "llm.cache.2"])
def test_stages_elsewhere(site):
    with pytest.raises(ValueError, match=f"schedule.0.site is {site}, but pruner 'vflowopt' prunes in front of"):
        vflowopt().check(Schedule((Stage(site, 0.5),)))


def test_stages_that_are_fine():
    """A stage that withdraws all asks for nothing; settings of other methods are refused."""
    vflowopt().check(Schedule((Stage("llm.input", 0.5), Stage("llm.layer.9", 0.2), Stage("llm.layer.12", 0))))
    assert vflowopt(alpha=1.0).needs(Stage("llm.layer.12", 0)) == ()
    with pytest.raises(ValueError, match=r"schedule.0.balance is set"):
        vflowopt().check(Schedule((stage("llm.input", balance=0.3),)))
