"""Joining choices: each token once, in the order of choice, within a row's count; read or queued, the same."""

import pytest
import torch

from btp.ops import union
from btp.ops.union import joined


def listed(rows):
    return [[i for i in row if i >= 0] for row in rows.tolist()]


def test_by_hand():
    """4 is there already, 7 has no room, -1 counts for nothing."""
    chosen, extra = torch.tensor([[4, 1], [3, -1]]), torch.tensor([[0, 4, 6, 7], [3, 2, -1, 5]])
    found, sure = joined(chosen, extra, (4, 9), (2, 1), (4, 3))
    assert listed(found) == [[4, 1, 0, 6], [3, 2, 5]]
    assert sure == [4, 3]


@pytest.mark.parametrize("seed", range(5))
def test_queued_is_as_read(seed):
    """What a device queues is what the CPU reads, and what it counts on is there."""
    random = torch.Generator().manual_seed(seed)
    first = torch.stack([torch.randperm(12, generator=random)[:4] for _ in range(3)])
    more = torch.stack([torch.randperm(12, generator=random)[:5] for _ in range(3)])
    first[1, 2:], more[2, 3:] = -1, -1
    counts = (6, 3, 12)
    read, exact = union._read(first, more, counts)
    assert listed(union._queued(first, more, counts)) == listed(read)
    least = [min(k, max(n, m)) for k, n, m in zip(counts, (4, 2, 4), (5, 5, 3), strict=True)]
    assert all(a <= b for a, b in zip(least, exact, strict=True))
    assert exact == [len(row) for row in listed(read)]


def test_nothing_to_join():
    """No column on one side or both."""
    none, some = torch.empty(1, 0, dtype=torch.long), torch.tensor([[2, 5]])
    assert listed(joined(none, some, (2,), (0,), (2,))[0]) == [[2, 5]]
    assert listed(joined(some, none, (2,), (2,), (0,))[0]) == [[2, 5]]
    assert joined(none, none, (2,), (0,), (0,))[1] == [0]
