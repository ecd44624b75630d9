"""DivPrune: the card's example, what it must not depend on, and its two orders."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from checked_selection import check_selection
from hand import row, stage, tokens

from btp.core.schedule import Schedule
from btp.core.signals import Signals
from btp.pruners.divprune import DivPrune

INPUT = "llm.input"


def pick(seen, keep, order="selection", distance="cosine"):
    return DivPrune(order=order, distance=distance).select(seen, Signals(), stage(INPUT, keep))


def of(rows):
    """Tokens with these hidden states."""
    x = torch.as_tensor(rows, dtype=torch.float32)
    return replace(tokens(len(x)), hidden=x[None])


def test_worked_example():
    """Six tokens, half of them: 4 is most alone, 0 farthest from it, 3 from both."""
    seen = of([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9], [-1, 0.2], [0.7, 0.7]])
    assert pick(seen, 0.5).keep.tolist() == [[4, 0, 3]]
    assert pick(seen, 0.5, order="raster").keep.tolist() == [[0, 3, 4]]


def test_orders_keep_the_same_set():
    """Raster order ascends; the order of picking says so, and passes as such."""
    seen = tokens(30, 17)
    picked, raster = pick(seen, 0.4), pick(seen, 0.4, order="raster")
    assert picked.ordered
    assert not raster.ordered
    for selection in (picked, raster):
        check_selection(selection, (12, 6), (30, 17), "divprune", INPUT)
    assert [sorted(r) for r in picked.keep.tolist()] == [sorted(r) for r in raster.keep.tolist()]
    assert picked.keep[0].tolist() != raster.keep[0].tolist()


def test_order_is_the_same_alone():
    """In a batch of unequal rows as alone."""
    seen = tokens(30, 17, 4)
    keep = pick(seen, 0.5).keep
    for b, count in enumerate((15, 8, 2)):
        alone, _ = row(b, seen, Signals())
        assert pick(alone, 0.5).keep[0].tolist() == keep[b, :count].tolist()


@pytest.mark.parametrize("distance", ["cosine", "l1", "l2"])
def test_fewer_are_the_first_of_more(distance):
    """Picks do not look ahead."""
    seen = tokens(40)
    assert pick(seen, 9, distance=distance).keep[0].tolist() == pick(seen, 25, distance=distance).keep[0, :9].tolist()


def test_lengths_and_turns_change_nothing():
    """Cosine distance: any positive scale of each token, any orthogonal map of all."""
    seen = tokens(40)
    x = seen.hidden.double()
    turn = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64))[0]
    wanted = pick(replace(seen, hidden=x), 15).keep
    for other in (x * torch.rand(1, 40, 1).double().add(0.1), x @ turn):
        assert torch.equal(pick(replace(seen, hidden=other), 15).keep, wanted)


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_other_distances_see_the_scale(distance):
    """Where cosine does not tell tokens apart, the others do."""
    seen = of([[1.0, 0.1], [2.0, 0.2], [40.0, 4.0], [0.1, 1.0]])
    assert 2 in pick(seen, 1, distance=distance).keep[0].tolist()
    assert pick(seen, 1).keep.tolist() == [[3]]


def test_places_do_not_matter():
    """Tokens in another order: the same ones are kept."""
    seen, shuffle = tokens(40), torch.randperm(40)
    keep = pick(seen, 12).keep[0]
    moved = pick(replace(seen, hidden=seen.hidden[:, shuffle]), 12).keep[0]
    assert shuffle[moved].tolist() == keep.tolist()


def test_farther_apart_than_by_lot():
    """The least distance of a pair is that of no random subset, and half of the best there is, in the chord metric."""

    def apart(x, chosen):
        return min(float(1 - torch.cosine_similarity(x[a], x[b], dim=0)) for a, b in combinations(chosen, 2))

    seen = tokens(60)
    x = seen.hidden[0].double()
    ours = apart(x, pick(seen, 8).keep[0].tolist())
    assert all(ours >= apart(x, torch.randperm(60)[:8].tolist()) for _ in range(100))
    x = x[:12]
    ours = apart(x, pick(of(x), 4).keep[0].tolist())
    best = max(apart(x, chosen) for chosen in combinations(range(12), 4))
    assert ours**0.5 >= 0.5 * best**0.5


@pytest.mark.parametrize("order", ["raster", "selection"])
def test_copies_and_zero_rows(order):
    """64 tokens of which 19 differ, one of them zero: 32 distinct indices, all 19 among them."""
    x = torch.randn(19, 8)
    x[5] = 0
    kind = torch.arange(64) % 19
    keep = pick(of(x[kind]), 32, order=order).keep[0]
    assert len(keep.unique()) == 32
    assert len(kind[keep].unique()) == 19


def test_pictures_compete():
    """One selection over all pictures of a prompt: a picture that repeats one token keeps one."""
    seen = tokens(20)
    hidden = seen.hidden.clone()
    hidden[0, 10:] = hidden[0, 10]
    seen = replace(seen, hidden=hidden, image=(seen.index >= 10).long())
    assert (pick(seen, 8).keep >= 10).sum() == 1


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"site": INPUT, "keep": 0.5}], r"order is selection, but schedule.0 stands at llm.input with positions: ori"),
        (
            [{"site": "vision.output", "keep": 0.5, "positions": "renumber"}],
            r"schedule.0 stands at vision.output .* Set schedule.0.site to llm.input or llm.layer.N and",
        ),
        ([{"site": INPUT, "keep": 0.5, "balance": 1}], r"schedule.0.balance is set, but pruner 'divprune'"),
    ],
)
def test_stage_messages(stages, message):
    """Tokens that keep their positions cannot change places."""
    with pytest.raises(ValueError, match=message):
        DivPrune(order="selection", distance="cosine").check(Schedule.from_config(stages))


def test_accepted_schedules():
    """In front of any layer; in raster order with any positions, and a withdrawal behind it."""
    late = {"site": "llm.layer.2", "keep": 0.5, "positions": "renumber"}
    DivPrune(order="selection", distance="l1").check(Schedule.from_config([late]))
    raster = [{"site": "vision.output", "keep": 0.5}, {"site": "llm.layer.3", "keep": 0}]
    DivPrune(order="raster", distance="l2").check(Schedule.from_config(raster))
    DivPrune(order="selection", distance="l2").check(Schedule.from_config([late, raster[1]]))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("order", "sorted", "pruner.method.order is 'sorted'. Choose from: raster, selection"),
        ("distance", "dot", "pruner.method.distance is 'dot'. Choose from: cosine, l1, l2"),
    ],
)
def test_method_messages(key, value, message):
    """Unknown settings are refused with the known ones."""
    with pytest.raises(ValueError, match=message):
        DivPrune(**{"order": "raster", "distance": "cosine"} | {key: value})
