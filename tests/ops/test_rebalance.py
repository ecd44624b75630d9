"""Rebalancing, by hand."""

import pytest
import torch

from btp.core.topk import top_k
from btp.ops import rebalance
from btp.ops.rebalance import rebalanced_top

A = torch.tensor([[0.1, 0.9, 0.2, 0.3, 0.8, 0.7, 0.6, 0.5]])


def test_worked_example():
    """Top 6 by score are 1 4 5 6 7 3; of these 1 and 3 are early, then 4 and 5 fill."""
    assert rebalanced_top(A, [4], [6], [4]).tolist() == [[1, 3, 4, 5]]


def test_early_ones_alone_may_suffice():
    """Where early candidates are more than k, the highest of them are taken, and no late one."""
    assert rebalanced_top(A, [1], [6], [4]).tolist() == [[1]]
    assert rebalanced_top(A, [3], [8], [8]).tolist() == [[1, 4, 5]]


def test_without_spare_candidates_it_is_top_k():
    """With as many candidates as picks the order of preference has no effect on the set."""
    scores = torch.randn(3, 20).round(decimals=1)
    picks = rebalanced_top(scores, [7] * 3, [7] * 3, [10] * 3)
    assert torch.equal(picks.sort(dim=1).values, top_k(scores, [7] * 3))


def test_ragged_rows_equal_themselves_alone():
    """Padding never wins, rows of smaller k end in -1, NaN ranks last."""
    scores = torch.randn(2, 10)
    scores[1, 2], scores[1, 6:] = torch.nan, 99.0
    valid = torch.arange(10) < torch.tensor([[10], [6]])
    both = rebalanced_top(scores, [4, 2], [8, 3], [5, 3], valid)
    assert both[0].tolist() == rebalanced_top(scores[:1], [4], [8], [5])[0].tolist()
    assert both[1].tolist() == [*rebalanced_top(scores[1:, :6], [2], [3], [3])[0].tolist(), -1, -1]
    assert rebalanced_top(scores[1:, :6], [6], [6], [6])[0, -1] == 2


def test_message():
    """Fewer candidates than picks cannot be."""
    with pytest.raises(ValueError, match=r"asked for \(4,\) of \(3,\) candidates among 8"):
        rebalanced_top(A, [4], [3], [4])


def test_a_device_chooses_the_same():
    """Ragged rows, without reading anything."""
    order = torch.stack([torch.randperm(20)[:12] for _ in range(3)])
    asked = ((9, 2, 0), (12, 5, 3), (10, 4, 20))
    assert torch.equal(rebalance._read(order, *asked), rebalance._queued(order, *asked))
    even = ((5, 5, 5), (12, 12, 12), (8, 8, 8))
    assert torch.equal(rebalance._read(order, *even), rebalance._queued(order, *even))
