"""Density-peak clustering: the worked example, a plain loop as reference, ragged rows."""

import math

import pytest
import torch

from btp.ops.density_peaks import _distances, density_peaks


def plain(x, k):
    """The same in loops and float64, for one row: centres in their order and the group of each row."""
    M, D = x.shape
    apart = (x.double()[:, None] - x.double()[None]).norm(dim=-1) / D**0.5
    spread = [apart[i].sort().values[:k].square().mean().item() for i in range(M)]
    delta = []
    for i in range(M):
        denser = [j for j in range(M) if spread[j] < spread[i] or (spread[j] == spread[i] and j < i)]
        delta.append(min(apart[i, j].item() for j in denser) if denser else apart.max().item())
    product = [(math.log(d) if d else -math.inf) - s for d, s in zip(delta, spread, strict=True)]
    centres = sorted(range(M), key=lambda i: (-product[i], i))[:k]
    groups = [min(range(k), key=lambda c: (apart[i, centres[c]].item(), c)) for i in range(M)]
    for c, i in enumerate(centres):
        groups[i] = c
    return centres, groups


def test_worked_example():
    """x = 0 1 3 8 8.5 10.5 and three clusters: centres 8.5, 1, 10.5; means 8.25, 1.3333, 10.5."""
    x = torch.tensor([0, 1, 3, 8, 8.5, 10.5]).view(1, 6, 1)
    centres, group = density_peaks(x, [3])
    assert centres.tolist() == [[4, 1, 5]]
    assert group.tolist() == [[1, 1, 1, 0, 0, 2]]
    means = [x[0, group[0] == c].mean().item() for c in range(3)]
    assert means == pytest.approx([8.25, 4 / 3, 10.5])


@pytest.mark.parametrize(("M", "D", "k"), [(12, 5, 2), (40, 16, 4), (83, 12, 9), (7, 3, 7)])
def test_equals_the_plain_loop(M, D, k):
    """Centres, their order and all groups."""
    x = torch.randn(M, D, generator=torch.Generator().manual_seed(M))
    centres, group = density_peaks(x[None], [k])
    assert (centres[0].tolist(), group[0].tolist()) == plain(x, k)


def test_rows_do_not_see_each_other():
    """Different lengths and numbers of clusters in one batch, with padding that would win if it were seen."""
    x = torch.randn(4, 30, 6, generator=torch.Generator().manual_seed(3))
    lengths, k = (30, 17, 5, 9), (4, 3, 0, 1)
    valid = torch.arange(30) < torch.tensor(lengths)[:, None]
    for filling in (0.0, 50.0, 1e4):
        padded = torch.where(valid[..., None], x, torch.full_like(x, filling))
        centres, group = density_peaks(padded, k, valid)
        assert centres.shape == (4, 4)
        for b, (n, c) in enumerate(zip(lengths, k, strict=True)):
            assert centres[b, c:].tolist() == [-1] * (4 - c)
            if c:
                assert (centres[b, :c].tolist(), group[b, :n].tolist()) == plain(x[b, :n], c)


def test_order_of_rows_does_not_matter():
    """Permuting the rows permutes the result."""
    x = torch.randn(1, 25, 4, generator=torch.Generator().manual_seed(5))
    order = torch.randperm(25, generator=torch.Generator().manual_seed(6))
    centres, group = density_peaks(x, [4])
    moved, its_group = density_peaks(x[:, order], [4])
    assert order[moved[0]].tolist() == centres[0].tolist()
    assert torch.equal(its_group[0], group[0, order])


def test_ties_go_to_the_lowest_index():
    """Equal rows: the first is the only one to stand out, then duplicates in order; centres join themselves."""
    centres, group = density_peaks(torch.ones(1, 5, 3), [3])
    assert centres.tolist() == [[0, 1, 2]]
    assert group.tolist() == [[0, 1, 2, 0, 0]]
    pairs = torch.tensor([0.0, 4.0, 0.0, 4.0]).view(1, 4, 1)
    centres, group = density_peaks(pairs, [2])
    assert centres.tolist() == [[0, 1]]
    assert group.tolist() == [[0, 1, 0, 1]]


def test_equally_dense_pairs():
    """Two rows that are each other's nearest are equally dense for k = 2; strictly, both are centres."""
    x = torch.tensor([2.5, 0.0, 0.03125, 1.0]).view(1, 4, 1)
    assert density_peaks(x, [2])[0].tolist() == [[1, 3]]
    assert density_peaks(x, [2], strict=True)[0].tolist() == [[1, 2]]


def test_far_rows_are_still_told_apart():
    """Where exp(-distance) is 0 in float32 for every row, the dense ones are still found."""
    x = 1e3 * torch.randn(20, 4, generator=torch.Generator().manual_seed(7))
    centres, group = density_peaks(x[None], [3])
    assert (centres[0].tolist(), group[0].tolist()) == plain(x, 3)


def test_low_precision_features():
    """bfloat16 rows are compared in float32."""
    x = torch.randn(1, 30, 8, generator=torch.Generator().manual_seed(9)).bfloat16()
    centres, group = density_peaks(x, [3])
    same, its_group = density_peaks(x.float(), [3])
    assert torch.equal(centres, same)
    assert torch.equal(group, its_group)


@pytest.mark.parametrize("D", [3, 64, 1024])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_copies_are_copies(D, offset):
    """Wherever a copy stands, it is at distance 0, and so no centre before any other row; far from 0 as near it."""
    random = torch.Generator().manual_seed(D)
    half = torch.randn(1, 41, D, generator=random) + offset * torch.randn(1, 1, D, generator=random)
    x = torch.cat([half, half.flip(1), half[:, :7]], dim=1)
    valid = torch.ones(1, 89, dtype=torch.bool)
    distance = _distances(x, valid)[0]
    assert torch.equal(distance, distance.T)
    same = (x[0, :, None] == x[0]).all(-1)
    assert (distance[same] == 0).all()
    assert (distance[~same] > 0).all()
    centres, _ = density_peaks(x, [41])
    assert len({tuple(x[0, i].tolist()) for i in centres[0].tolist()}) == 41


def test_near_copies_count_as_copies():
    """What a product in float32 cannot tell from a copy is one: below a thousandth of the distance to the mean."""
    x = torch.tensor([0.0, 1.0, 1.0002, 1.02]).view(1, 4, 1)
    x = torch.cat([x, -x, 0 * x], dim=2)
    distance = _distances(x, torch.ones(1, 4, dtype=torch.bool))[0]
    assert distance[1, 2] == 0
    assert distance[1, 3].item() == pytest.approx(0.02 * 2**0.5, rel=1e-3)
    exact = _distances(x.double(), torch.ones(1, 4, dtype=torch.bool))[0]
    assert exact[1, 2].item() == pytest.approx(0.0002 * 2**0.5, rel=1e-3)


def test_a_mean_far_away():
    """Features that share a large part keep their distances: the part is taken off before the product."""
    random = torch.Generator().manual_seed(1)
    x = torch.randn(1, 50, 256, generator=random) + 300 * torch.randn(1, 1, 256, generator=random)
    valid = torch.arange(50)[None] < 44
    x[:, 44:] = 1e4
    found = _distances(x, valid)[0, :44, :44]
    exact = torch.cdist(x[0, :44].double(), x[0, :44].double(), compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)


def test_messages():
    """Numbers of clusters that do not match the rows."""
    x = torch.zeros(2, 3, 1)
    with pytest.raises(ValueError, match=r"got 1 numbers of clusters for 2 rows. Pass one per row."):
        density_peaks(x, [1])
    for wrong in ([4, 1], [-1, 1]):
        with pytest.raises(ValueError, match=r"clusters of 3 rows. They must lie in 0..3."):
            density_peaks(x, wrong)
    centres, group = density_peaks(x, [0, 0])
    assert centres.shape == (2, 0)
    assert group.shape == (2, 3)
