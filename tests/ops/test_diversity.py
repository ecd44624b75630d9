"""Farthest points against the plain greedy loop, and by hand."""

import pytest
import torch

from btp.ops import farthest_point as diversity
from btp.ops import farthest_point_cpu as picks_read
from btp.ops import farthest_point_cuda as picks_queued
from btp.ops.farthest_point import farthest_points


def plain(x, seed, k):
    """The obvious loop for one row: at every pick the minimum over all chosen rows anew."""
    x = torch.nn.functional.normalize(x.double(), dim=-1)
    distance = 1 - x @ x.T
    chosen = list(seed)
    while len(chosen) < k:
        others = distance + torch.diag(torch.full((len(x),), torch.inf))
        nearest = distance[chosen].amin(0) if chosen else others.amin(1)
        nearest[chosen] = -torch.inf
        chosen.append(int(nearest.argmax()))
    return sorted(chosen)


def none(rows=1):
    return torch.empty(rows, 0, dtype=torch.long)


def as_on_a_device(monkeypatch, sure=None):
    """Let tensors of the CPU be picked without reading them, as those of a GPU are."""

    def read(x, seed, counts, valid, power, ordered):
        return picks_queued.queued(x, seed, counts, valid, sure or (0,) * len(counts), power, ordered)

    monkeypatch.setattr(diversity, "read", read)


@pytest.mark.parametrize("seed", [[], [5], [40, 3, 17]])
@pytest.mark.parametrize("k", [3, 11, 20, 60])
def test_same_picks_as_the_plain_loop(seed, k):
    """With and without seeds, for few picks and for all."""
    x = torch.randn(60, 16)
    assert farthest_points(x[None], torch.tensor([seed], dtype=torch.long), k).tolist() == [plain(x, seed, k)]


@pytest.mark.parametrize("seed", [[], [7, 30]])
def test_rows_on_demand_pick_the_same(monkeypatch, seed):
    """Too many to hold all similarities, they are made row by row, and picks are the same."""
    x = torch.randn(2, 90, 16)
    index = torch.tensor([seed, seed], dtype=torch.long)
    held = farthest_points(x, index, 30)
    monkeypatch.setattr(picks_read, "BLOCK", 7)  # a table made in blocks
    assert torch.equal(held, farthest_points(x, index, 30))
    monkeypatch.setattr(picks_read, "TABLE_TOKENS", 0)
    assert torch.equal(held, farthest_points(x, index, 30))
    as_on_a_device(monkeypatch)
    assert torch.equal(held, farthest_points(x, index, 30))
    monkeypatch.setattr(picks_queued, "TABLE_TOKENS", 0)
    monkeypatch.setattr(picks_queued, "BLOCK", 7)
    assert torch.equal(held, farthest_points(x, index, 30))
    assert held.tolist() == [plain(row, seed, 30) for row in x]


@pytest.mark.parametrize("seed", [[], [7, 30, 2]])
@pytest.mark.parametrize("near_turn", [1, 5, 100])
@pytest.mark.parametrize("block", [1, 7, 100])
def test_without_a_table_the_order_is_the_same(monkeypatch, seed, near_turn, block):
    """Whole numbers, so that distances are exact: copies, ties and all 90 tokens, in the order of the table."""
    x = torch.randint(-1, 2, (1, 90, 4)).float()
    x[0, 40:60] = x[0, :20]
    index = torch.tensor([seed], dtype=torch.long)
    for k in (len(seed) + 1, 30, 90):
        with monkeypatch.context() as patch:
            held = farthest_points(x, index, k, distance="l1", ordered=True)
            patch.setattr(picks_read, "TABLE_TOKENS", 0)
            patch.setattr(picks_read, "NEAR_TURN", near_turn)
            patch.setattr(picks_read, "BLOCK", block)
            assert torch.equal(held, farthest_points(x, index, k, distance="l1", ordered=True))


def test_by_hand():
    """Directions at 0, 10, 90, 180 degrees: 180 is most alone (90 is 80 from 10), and 0 farthest from it."""
    angle = torch.deg2rad(torch.tensor([0.0, 10.0, 90.0, 180.0]))
    x = torch.stack([angle.cos(), angle.sin()], dim=1)[None] * torch.tensor([1.0, 5.0, 0.1, 2.0])[:, None]
    assert farthest_points(x, none(), 1).tolist() == [[3]]
    assert farthest_points(x, none(), 2).tolist() == [[0, 3]]
    assert farthest_points(x, torch.tensor([[1]]), 2).tolist() == [[1, 3]]
    assert farthest_points(x, torch.tensor([[1]]), 3).tolist() == [[1, 2, 3]]


def test_ties_go_to_the_lowest_index():
    """Among equals, and for the start too."""
    x = torch.eye(6)[None]
    assert farthest_points(x, none(), 3).tolist() == [[0, 1, 2]]
    assert farthest_points(x, torch.tensor([[4]]), 3).tolist() == [[0, 1, 4]]


@pytest.mark.parametrize("reads", [True, False])
def test_ragged_rows_equal_themselves_alone(monkeypatch, reads):
    """Rows of different length, count and seeds; padding is never chosen, and without reading the device
    (where only the caller's word tells how many seeds there are) idle picks change nothing."""
    lengths, counts, seeds = (20, 13, 7), (9, 2, 7), ([1, 19, -1], [-1, -1, -1], [6, 6, -1])
    x = torch.randn(3, 20, 8)
    valid = torch.arange(20) < torch.tensor(lengths)[:, None]
    for sure in ((2, 0, 1), (0, 0, 0)):
        if not reads:
            as_on_a_device(monkeypatch, sure)
        keep = farthest_points(x, torch.tensor(seeds), counts, valid, sure)
        for row, (n, k, seed) in enumerate(zip(lengths, counts, seeds, strict=True)):
            own = sorted({i for i in seed if i >= 0})
            assert keep[row].tolist() == plain(x[row, :n], own, k) + [-1] * (9 - k)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype):
    """Low precision is compared in float32, float64 stays what it is."""
    x = torch.randn(1, 40, 16).to(dtype)
    assert farthest_points(x, none(), 12).tolist() == [plain(x[0], [], 12)]


def test_nothing_and_everything():
    """k = 0 gives no columns; k = N all tokens; seeds that fill k come back sorted."""
    x = torch.randn(2, 5, 3)
    assert farthest_points(x, none(2), 0).shape == (2, 0)
    assert farthest_points(x, none(2), 5).tolist() == [[0, 1, 2, 3, 4]] * 2
    assert farthest_points(x, torch.tensor([[4, 1], [0, 2]]), 2).tolist() == [[1, 4], [0, 2]]


def test_messages():
    """Counts that do not fit are refused."""
    x = torch.randn(2, 5, 3)
    with pytest.raises(ValueError, match="3 counts for 2 rows"):
        farthest_points(x, none(2), (1, 2, 3))
    with pytest.raises(ValueError, match=r"asked for \(6, 6\) of 5 tokens"):
        farthest_points(x, none(2), 6)


@pytest.mark.parametrize("distance", ["cosine", "l1", "l2"])
@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("table", [4096, 0])
def test_order_of_picking(monkeypatch, distance, table, reads):
    """Seeds first, then the others as they were picked: the picks for fewer are the first of those for more."""
    monkeypatch.setattr(picks_read if reads else picks_queued, "TABLE_TOKENS", table)
    if not reads:
        as_on_a_device(monkeypatch)
    x, lengths = torch.randn(2, 50, 8), (50, 31)
    valid = torch.arange(50) < torch.tensor(lengths)[:, None]
    seed = torch.tensor([[9, 2, 9], [-1, -1, -1]])
    many = farthest_points(x, seed, (20, 12), valid, distance=distance, ordered=True)
    assert many[0, :2].tolist() == [2, 9]
    assert many[1, 12:].tolist() == [-1] * 8
    few = farthest_points(x, seed, (7, 5), valid, distance=distance, ordered=True)
    assert few.tolist() == [many[0, :7].tolist(), many[1, :5].tolist() + [-1, -1]]
    kept = farthest_points(x, seed, (20, 12), valid, distance=distance)
    assert [sorted(many[0].tolist()), sorted(many[1, :12].tolist())] == [kept[0].tolist(), kept[1, :12].tolist()]


@pytest.mark.parametrize(("distance", "power"), [("l1", 1), ("l2", 2)])
def test_other_distances(distance, power):
    """The plain loop over the distances of all pairs, by difference and norm."""
    x = torch.randn(40, 6) + 3
    apart = (x[:, None] - x).abs().pow(power).sum(2).pow(1 / power).double()
    alone = (apart + torch.diag(torch.full((40,), torch.inf))).amin(1)
    order = [int(alone.argmax())]
    while len(order) < 15:
        nearest = apart[order].amin(0)
        nearest[order] = -1
        order.append(int(nearest.argmax()))
    assert farthest_points(x[None], none(), 15, distance=distance, ordered=True).tolist() == [order]
    assert order != farthest_points(x[None], none(), 15, ordered=True)[0].tolist()


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("distance", ["cosine", "l1", "l2"])
def test_copies_and_nothing(monkeypatch, distance, reads):
    """More asked for than there are distinct tokens: each of these first, then copies, each index once; zero rows
    are copies of each other, and no NaN."""
    if not reads:
        as_on_a_device(monkeypatch)
    x = torch.randn(4, 5)[torch.arange(12) % 4]
    x[torch.arange(12) % 4 == 2] = 0
    order = farthest_points(x[None], none(), 9, distance=distance, ordered=True)[0].tolist()
    assert sorted(i % 4 for i in order[:4]) == [0, 1, 2, 3]
    assert len(set(order)) == 9
    if distance != "cosine":  # where a copy is not at distance 0 to the last bit
        assert order[4:] == sorted(order[4:])


def test_unknown_distance():
    """Refused with the known ones."""
    with pytest.raises(ValueError, match=r"distance is 'dot'. Choose from: cosine, l1, l2"):
        farthest_points(torch.randn(1, 5, 3), none(), 2, distance="dot")
