"""Merging states and sizes, by hand."""

import pytest
import torch

from btp.core.selection import MergePlan
from btp.ops.merge import merge_sizes, merge_states

X = torch.tensor(
    [[[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0]], [[5.0, 50.0], [6.0, 60.0], [7.0, 70.0], [8.0, 80.0]]]
)
KEEP = torch.tensor([[0, 2], [1, -1]])
TARGET = torch.tensor([[0, 0, 2, -1], [1, 1, 1, -1]])
WEIGHT = torch.tensor([[1.0, 3.0, 5.0, 100.0], [0.0, 1.0, 1.0, 100.0]])


def test_mean():
    """The weighted mean of all that target a kept token; what goes nowhere counts nowhere."""
    found = merge_states(X, KEEP, MergePlan(TARGET, WEIGHT))
    assert found[0].tolist() == [[1.75, 17.5], [3.0, 30.0]]
    assert found[1, 0].tolist() == [6.5, 65.0]
    assert found.isfinite().all()


def test_sum():
    """The same without dividing."""
    found = merge_states(X, KEEP, MergePlan(TARGET, WEIGHT, "sum"))
    assert found[0].tolist() == [[7.0, 70.0], [15.0, 150.0]]
    assert found[1, 0].tolist() == [13.0, 130.0]


def test_scale_of_weights():
    """A mean does not know the scale of its weights; all zero is zero, and no NaN."""
    plan = MergePlan(TARGET, 7 * WEIGHT)
    assert torch.allclose(merge_states(X, KEEP, plan), merge_states(X, KEEP, MergePlan(TARGET, WEIGHT)))
    nothing = merge_states(X, KEEP, MergePlan(TARGET, torch.zeros(2, 4)))
    assert (nothing == 0).all()


def test_order():
    """Kept tokens come in the order of keep."""
    plan = MergePlan(TARGET, WEIGHT)
    assert merge_states(X, torch.tensor([[2, 0], [1, -1]]), plan)[0].tolist() == [[3.0, 30.0], [1.75, 17.5]]
    assert merge_sizes(torch.ones(2, 4).long(), torch.tensor([[2, 0], [1, -1]]), plan).tolist() == [[1, 2], [3, 0]]


def test_sizes():
    """Sizes add up along the targets, whatever the weights; padding stands for nothing."""
    size = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    found = merge_sizes(size, KEEP, MergePlan(TARGET, WEIGHT))
    assert found.tolist() == [[3, 3], [18, 0]]
    assert found.dtype == size.dtype
    assert size.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes(dtype):
    """States keep their dtype and are summed in float32 or better, whatever that of the weights."""
    many = torch.full((1, 1001, 1), 0.1, dtype=dtype)
    plan = MergePlan(torch.zeros(1, 1001).long(), torch.ones(1, 1001, dtype=torch.bfloat16), "sum")
    found = merge_states(many, torch.tensor([[0]]), plan)
    assert found.dtype == dtype
    assert abs(float(found) / (1001 * float(many[0, 0, 0])) - 1) < 1e-2 / (1 if dtype.itemsize == 2 else 1e3)


def test_none_kept():
    """Nothing kept, nothing made."""
    plan = MergePlan(torch.full((2, 4), -1), torch.ones(2, 4))
    assert merge_states(X, torch.zeros(2, 0).long(), plan).shape == (2, 0, 2)
    assert merge_sizes(torch.ones(2, 4).long(), torch.zeros(2, 0).long(), plan).shape == (2, 0)


def test_what_is_alone_stays_as_it_is():
    """A mean of one token is that token, bit by bit, whatever it weighs."""
    x = torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(0))
    index = torch.arange(30).repeat(2, 1)
    plan = MergePlan(index, torch.rand(2, 30, generator=torch.Generator().manual_seed(1)) + 0.1)
    keep = torch.stack([torch.arange(0, 30, 3), torch.arange(1, 30, 3)])
    assert torch.equal(merge_states(x, keep, plan), x.gather(1, keep[..., None].expand(-1, -1, 8)))


def test_against_the_definition():
    """Ragged rows in float64, targets that are not kept included: these take nothing along."""
    random = torch.Generator().manual_seed(4)
    x = torch.randn(3, 50, 5, generator=random, dtype=torch.float64)
    keep = torch.stack([torch.randperm(50, generator=random)[:9] for _ in range(3)])
    keep[1, 4:] = -1
    target = torch.randint(-1, 50, (3, 50), generator=random)
    weight = torch.rand(3, 50, generator=random, dtype=torch.float64)
    for combine in ("mean", "sum"):
        found = merge_states(x, keep, MergePlan(target, weight, combine))
        for b in range(3):
            for j, i in enumerate(keep[b].tolist()):
                part = weight[b] * (target[b] == i)
                total = part.sum().clamp(min=1e-30) if combine == "mean" else 1
                if i >= 0:
                    torch.testing.assert_close(found[b, j], (part[:, None] * x[b]).sum(0) / total)
    assert found.isfinite().all()


def test_what_is_dropped_is_not_read():
    """Not even an infinite state gets into what stays."""
    x = X.clone()
    x[:, 3] = torch.inf
    assert torch.equal(
        merge_states(x, KEEP, MergePlan(TARGET, WEIGHT)), merge_states(X, KEEP, MergePlan(TARGET, WEIGHT))
    )
