"""Distances in the order of choice: worked by hand, and against the sampling that they explain."""

import pytest
import torch

from btp.ops.farthest_point import farthest_points
from btp.ops.nearest_chosen import distances_in_turn


def test_worked_example():
    """Four directions, chosen 0 then 2: 0 by its nearest other, 2 by its distance to 0, the rest by the nearer one."""
    x = torch.tensor([[[1.0, 0.0], [3.0, 4.0], [0.0, 2.0], [-1.0, 0.0]]])
    found = distances_in_turn(x, torch.tensor([[0, 2]]))
    torch.testing.assert_close(found, torch.tensor([[0.4, 0.2, 1.0, 1.0]]))


def test_nothing_chosen():
    assert distances_in_turn(torch.randn(1, 3, 4), torch.empty(1, 0, dtype=torch.long)).tolist() == [[2.0] * 3]


@pytest.mark.parametrize("seeds", [0, 3])
def test_agrees_with_the_sampling(seeds):
    """Picks fall in distance, and none left out is farther than the last pick; ragged rows do not see padding."""
    x = torch.randn(2, 20, 8, generator=torch.Generator().manual_seed(3))
    valid = torch.arange(20) < torch.tensor([20, 13])[:, None]
    start = torch.arange(seeds).expand(2, seeds)
    order = farthest_points(x, start, (9, 6), valid, ordered=True)
    found = distances_in_turn(x, order, valid)
    for b, count in enumerate((9, 6)):
        picks = found[b, order[b, max(seeds, 1) : count]]
        assert (picks[1:] <= picks[:-1] + 1e-6).all()
        left = [i for i in range(int(valid[b].sum())) if i not in order[b].tolist()]
        assert found[b, left].max() <= picks[-1] + 1e-6
        alone = distances_in_turn(x[b : b + 1, : int(valid[b].sum())], order[b : b + 1, :count])
        torch.testing.assert_close(found[b, : alone.shape[1]], alone[0])
