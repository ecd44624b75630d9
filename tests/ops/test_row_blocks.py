"""How many rows are worked on at once changes memory alone."""

import pytest
import torch

from btp.ops import density_peaks as density_peaks_module
from btp.ops import row_blocks as module
from btp.ops.anchors import into_anchors
from btp.ops.attention_received import inflow_map
from btp.ops.coverage import coverage_set
from btp.ops.density_peaks import density_peaks
from btp.ops.redundancy import received_inside
from btp.ops.row_blocks import HELD, row_blocks

N = 13
VALID = torch.arange(N) < torch.tensor([[N], [9]])


def drawn():
    """Two rows of tokens, with copies among them, and queries and keys of two heads, one key head for both."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, N, 6, generator=generator)
    x[:, 7] = x[:, 2]
    return x, torch.randn(2, 2, N, 4, generator=generator), torch.randn(2, 1, N, 4, generator=generator)


def all_of_them():
    """Every operation that goes by blocks, as one list of tensors."""
    x, queries, keys = drawn()
    plan = into_anchors(x, VALID & (torch.arange(N) % 3 == 0), VALID & (torch.arange(N) % 3 == 1), x[..., 0] > 0, 0.5)
    found = [plan.target, plan.weight, inflow_map(queries, keys.expand(-1, 2, -1, -1), 1.0, "mean", VALID)]
    found += [received_inside(queries, keys, VALID, form)[VALID] for form in ("open", "causal", "logits")]
    found += [*density_peaks(x, (4, 3), VALID), *density_peaks(x, (4, 3), VALID, strict=True, neighbours=2)]
    return [*found, coverage_set(x, x[..., 0].abs(), (5, 4), valid=VALID)]


@pytest.mark.parametrize("held", [0, 5 * 2 * N * 4])
def test_every_operation_comes_to_the_same(monkeypatch, held):
    """One row at a time, and five, against all at once."""
    whole = all_of_them()
    monkeypatch.setattr(module, "CACHE", held)
    monkeypatch.setattr(density_peaks_module, "TILE", 4)
    for mine, theirs in zip(all_of_them(), whole, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_blocks_cover_all_rows_and_fit(monkeypatch):
    monkeypatch.setattr(module, "CACHE", 100)
    cpu = torch.device("cpu")
    assert list(row_blocks(7, 40, cpu)) == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 7)]
    assert list(row_blocks(2, 101, cpu)) == [slice(0, 1), slice(1, 2)]
    assert list(row_blocks(0, 8, cpu)) == []
    assert list(row_blocks(5, HELD // 3, torch.device("meta"))) == [slice(0, 3), slice(3, 5)]
