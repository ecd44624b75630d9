"""Recycling: the card's worked example, and what must hold for any tokens, cells and counts."""

import pytest
import torch

from btp.ops.merge import merge_states
from btp.ops.recycle import best_per_group, cell_numbers, direct_counts, given_back, marked, ranks, recycle

WORTH = (0.9, 0.1, 0.2, 0.8, 0.3, 0.05, 0.15, 0.25, 0.7, 0.12, 0.6, 0.02, 0.4, 0.35, 0.11, 0.5)


def squares(n, columns=4):
    at = torch.arange(n)
    return torch.stack([at // columns, at % columns], dim=1)[None]


def setting(worth, side, columns=4, valid=None):
    """rank, cell and valid of one row on a grid."""
    worth = torch.as_tensor(worth)[None]
    valid = torch.ones_like(worth, dtype=torch.bool) if valid is None else valid
    cell = cell_numbers(torch.zeros_like(worth, dtype=torch.long), squares(worth.shape[1], columns), side, valid)
    return ranks(worth, valid), cell, valid


def drawn(seed, n=30, columns=6, side=2.3):
    random = torch.Generator().manual_seed(seed)
    worth = torch.rand(n, generator=random)
    return worth[None], *setting(worth, side, columns)


def test_worked_example():
    """The card's picture of 4 x 4: reduce 8, extra 4."""
    worth = torch.tensor([WORTH])
    rank, cell, valid = setting(WORTH, 2)
    stays, plan = recycle(rank, cell, valid, worth, torch.tensor([4]), torch.tensor([16]))
    assert stays[0].nonzero().flatten().tolist() == [0, 3, 4, 7, 8, 10, 12, 15]
    low = {4: (1, 4, 5), 7: (2, 6, 7), 12: (9, 12, 13), 15: (11, 14, 15)}
    for best, members in low.items():
        assert plan.target[0, list(members)].tolist() == [best] * len(members)
    states = torch.arange(16.0)[None, :, None]
    keep = marked(stays, 8)
    merged = merge_states(states, keep, plan)[0, :, 0]
    wanted = torch.tensor([0, 3, 3.444444, 5.083333, 8, 10, 11.988506, 14.698413])
    torch.testing.assert_close(merged, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("direct", [0, 7, 29, 30])
def test_conservation(seed, direct):
    """Every low token flows into one token of its own cell, the best; what is mixed stays inside the hull."""
    worth, rank, cell, valid = drawn(seed)
    stays, plan = recycle(rank, cell, valid, worth, torch.tensor([direct]), torch.tensor([30]))
    low = rank[0] >= direct
    for number in cell[0].unique():
        members = (low & (cell[0] == number)).nonzero().flatten()
        if len(members):
            best = members[worth[0, members].argmax()]
            assert (plan.target[0, members] == best).all()
            assert stays[0, members].sum() == 1
    assert torch.equal(plan.target[0, ~low], torch.arange(30)[~low])
    assert stays.sum() == direct + given_back(rank, cell)[0, direct]
    states = torch.randn(1, 30, 4)
    keep = marked(stays, int(stays.sum()))
    merged = merge_states(states, keep, plan)[0]
    for token, state in zip(keep[0].tolist(), merged, strict=True):
        mine = states[0, plan.target[0] == token]
        assert (state <= mine.amax(0) + 1e-6).all()
        assert (state >= mine.amin(0) - 1e-6).all()
        if len(mine) == 1:
            torch.testing.assert_close(state, mine[0])


@pytest.mark.parametrize("seed", range(5))
def test_exact_counts(seed):
    """Every total from the number of cells on is met, by a count as near to the asked one as any that meets it."""
    _, rank, cell, valid = drawn(seed)
    back = given_back(rank, cell)[0]
    totals = torch.arange(31) + back
    assert (totals.diff() >= 0).all()
    for wanted in range(31):
        for first in (0, max(0, wanted - 3), wanted):
            found = int(direct_counts(rank, cell, valid, torch.tensor([wanted]), torch.tensor([first])))
            if wanted < back[0]:
                assert found == 0
                continue
            assert totals[found] == wanted
            others = (totals == wanted).nonzero().flatten()
            assert abs(found - first) == (others - first).abs().min()


def test_fewer_tokens_than_cells():
    """The cells whose best token ranks lowest are left out, and their tokens dropped without trace."""
    worth, rank, cell, valid = drawn(0)
    cells = int(given_back(rank, cell)[0, 0])
    best = torch.stack([worth[0, cell[0] == c].max() for c in range(cells)])
    stays, plan = recycle(rank, cell, valid, worth, torch.tensor([0]), torch.tensor([3]))
    assert int(stays.sum()) == 3
    kept = set(best.topk(3).indices.tolist())
    assert {int(c) for c in cell[0, stays[0]]} == kept
    assert all((plan.target[0, i] >= 0) == (int(cell[0, i]) in kept) for i in range(30))


def test_weights_below_zero_count_for_nothing():
    """A negative alpha may make a map negative: means stay in the hull; a cell without weight is a plain one."""
    worth = torch.tensor([[0.5, -0.2, -0.1, -0.3]])
    valid = torch.ones(1, 4, dtype=torch.bool)
    cell = torch.tensor([[0, 0, 1, 1]])
    stays, plan = recycle(ranks(worth, valid), cell, valid, worth, torch.tensor([0]), torch.tensor([4]))
    states = torch.tensor([[1.0, 2.0, 3.0, 5.0]])[..., None]
    assert merge_states(states, marked(stays, 2), plan)[0, :, 0].tolist() == [1.0, 4.0]


def test_cells_do_not_reach_over_regions_and_are_not_rounded():
    """Side 1.5 puts columns 0, 1 | 2 | 3, 4 together; equal places of two regions differ."""
    at = torch.stack([torch.zeros(5, dtype=torch.long), torch.arange(5)], dim=1)
    coord = torch.cat([at, at])[None]
    region = torch.tensor([[0] * 5 + [1] * 5])
    cell = cell_numbers(region, coord, 1.5, torch.ones(1, 10, dtype=torch.bool))[0].tolist()
    assert cell == [0, 0, 1, 2, 2, 3, 3, 4, 5, 5]


def test_off_the_grid_and_padding_lie_in_no_cell():
    coord = torch.tensor([[[0, 0], [-1, -1], [0, 1], [0, 0]]])
    valid = torch.tensor([[True, True, True, False]])
    cell = cell_numbers(torch.zeros(1, 4, dtype=torch.long), coord, 1.0, valid)
    assert cell.tolist() == [[0, -1, 1, -1]]
    rank = ranks(torch.tensor([[0.1, 0.2, 0.3, 9.0]]), valid)
    assert rank.tolist() == [[2, 1, 0, 3]]
    stays, plan = recycle(rank, cell, valid, torch.ones(1, 4), torch.tensor([1]), torch.tensor([4]))
    assert stays.tolist() == [[True, False, True, False]]
    assert plan.target.tolist() == [[0, -1, 2, -1]]


def test_rows_do_not_see_each_other():
    """A short row gives beside a long one what it gives alone."""
    worth, _, _, valid = drawn(3)
    short = setting(worth[0, :13], 2.3, 6)
    wide = torch.zeros(2, 30)
    wide[0], wide[1, :13] = worth[0], worth[0, :13]
    wide[1, 13:] = 7.0
    real = torch.stack([valid[0], torch.arange(30) < 13])
    region = torch.zeros(2, 30, dtype=torch.long)
    both = ranks(wide, real), cell_numbers(region, squares(30, 6).expand(2, -1, -1), 2.3, real), real
    counts = direct_counts(*both, torch.tensor([12, 9]), torch.tensor([9, 6]))
    alone = direct_counts(*short, torch.tensor([9]), torch.tensor([6]))
    assert counts[1] == alone[0]
    stays, plan = recycle(*both, wide, counts, torch.tensor([12, 9]))
    its, its_plan = recycle(*short, worth[:, :13], alone, torch.tensor([9]))
    assert torch.equal(stays[1, :13], its[0])
    assert not stays[1, 13:].any()
    assert torch.equal(plan.target[1, :13], its_plan.target[0])
    torch.testing.assert_close(plan.weight[1, :13], its_plan.weight[0])
    assert stays.sum(1).tolist() == [12, 9]


def test_best_per_group():
    """Each group keeps its own best, groups of one size as many (the later ones what is left over)."""
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.1, 0.2, 0.3, 5.0]])
    group = torch.tensor([[0, 0, 0, 1, 1, 1, 0]])
    valid = torch.arange(7)[None] < 6
    found = [best_per_group(scores, group, valid, torch.tensor([k]))[0].nonzero().flatten().tolist() for k in range(7)]
    assert found == [[], [5], [0, 5], [0, 4, 5], [0, 1, 4, 5], [0, 1, 3, 4, 5], [0, 1, 2, 3, 4, 5]]


def test_one_group_is_top_k_with_ties_to_the_lowest():
    scores = torch.tensor([[0.5, 0.5, 0.9, 0.5]])
    group, valid = torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.bool)
    assert best_per_group(scores, group, valid, torch.tensor([2])).tolist() == [[True, False, True, False]]
