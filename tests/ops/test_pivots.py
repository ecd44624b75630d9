"""Pivots and what is least like them, by hand and against a plain loop over sets."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from btp.ops.pivots import even_quota, least_alike, longest_keys, set_order


def plain(x, free, pivots, quota):
    """One row, with Python sets: what each pivot takes, in turn."""
    left, taken = {i for i, f in enumerate(free.tolist()) if f}, set()
    for pivot, most in zip(pivots, quota.tolist(), strict=True):
        order = sorted(left, key=lambda i: (float(cosine_similarity(x[i].double(), pivot.double(), dim=0)), i))
        taken |= set(order[:most])
        left -= set(order[:most])
    return taken


def members(mask):
    return set(mask.nonzero().flatten().tolist())


@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_same_as_the_plain_loop(scale):
    """Rows with different free tokens and quotas, whatever the length of the vectors."""
    x, pivots = scale * torch.randn(3, 30, 8), torch.randn(3, 5, 8)
    free = torch.rand(3, 30) < 0.8
    quota = torch.tensor([[3, 3, 3, 3, 3], [0, 9, 1, 0, 2], [50, 1, 1, 1, 1]])
    found = least_alike(x, free, pivots, quota)
    for b in range(3):
        assert members(found[b]) == plain(x[b], free[b], pivots[b], quota[b])
    assert members(found[2]) == members(free[2])


def test_turns_matter():
    """Both pivots would take token 0 first; the second to come takes what is next for it."""
    x = torch.tensor([[[-1.0, -1.0], [-1.0, 0.2], [0.2, -1.0], [1.0, 1.0]]])
    one, free = torch.ones(1, 2, dtype=torch.long), torch.ones(1, 4, dtype=torch.bool)
    east, north = torch.tensor([1.0, 0.8]), torch.tensor([0.8, 1.0])
    assert members(least_alike(x, free, torch.stack([east, north])[None], one)[0]) == {0, 2}
    assert members(least_alike(x, free, torch.stack([north, east])[None], one)[0]) == {0, 1}


def test_ties_go_to_the_lowest_index():
    """Among equal cosines, and where nothing tells tokens apart."""
    x, free = torch.ones(1, 6, 3), torch.tensor([[True, False, True, True, True, True]])
    assert members(least_alike(x, free, torch.ones(1, 2, 3), torch.tensor([[2, 1]]))[0]) == {0, 2, 3}


def test_longest_keys():
    """The sum over heads and channels of absolute values, longest first; padding never; ties to the lowest."""
    keys = torch.tensor([[3.0, -4.0, 0.5, 4.0, 9.0], [1.0, 1.0, 1.0, 1.0, 1.0]])[:, None, :, None]
    keys = torch.cat([keys, -keys], dim=1)
    valid = torch.tensor([[True, True, True, True, False], [True, True, False, False, False]])
    assert longest_keys(keys, valid, 3).tolist() == [[1, 3, 0], [0, 1, -1]]
    assert longest_keys(keys, valid, 9).shape == (2, 5)
    assert longest_keys(keys[:, :, :0], valid[:, :0], 4).shape == (2, 0)
    assert torch.equal(longest_keys(5 * keys, valid, 3), longest_keys(keys, valid, 3))
    assert torch.equal(longest_keys(keys.repeat_interleave(4, 1), valid, 3), longest_keys(keys, valid, 3))


def test_even_quota():
    """The same for each pivot, one more for the first ones; pivots that are none get none."""
    real = torch.tensor([[True] * 4, [True, False, True, True], [False] * 4])
    assert even_quota(torch.tensor([10, 10, 3]), real).tolist() == [[3, 3, 2, 2], [4, 0, 3, 3], [0, 0, 0, 0]]
    assert even_quota(torch.tensor([2, 0, 0]), real).tolist() == [[1, 1, 0, 0], [0] * 4, [0] * 4]


def test_set_order():
    """Eight numbers lie in a table of 32 places: ascending remainders where none collide."""
    ids = [40, 7, 65, 31, 96, 14, 60, 21]  # remainders 8 7 1 31 0 14 28 21
    assert [ids[i] for i in set_order(ids)] == [96, 65, 7, 40, 14, 21, 60, 31]
    ids = [124, 99, 142, 95, 174, 169, 175, 187]  # the recorded case b: 142 and 174 collide
    assert [ids[i] for i in set_order(ids)] == [99, 169, 174, 142, 175, 187, 124, 95]
    assert set_order([]) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_low_precision_is_compared_in_float32(dtype):
    """As if the same numbers had come in float64."""
    x, pivots, free = torch.randn(1, 40, 8).to(dtype), torch.randn(1, 4, 8).to(dtype), torch.ones(1, 40).bool()
    quota = torch.tensor([[3, 3, 2, 2]])
    assert torch.equal(least_alike(x, free, pivots, quota), least_alike(x.double(), free, pivots.double(), quota))
