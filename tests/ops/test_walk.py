"""The walk along attention: the card's example, a dense one in float64, and its limits."""

import pytest
import torch

from btp.ops import pagerank as walk
from btp.ops.pagerank import walk_scores

SETTINGS = {"tau": 0.1, "iterations": 5, "damping": 0.0}


def from_logits(logits):
    """Queries and keys whose products are these [B, H, S, S] logits."""
    eye = torch.eye(logits.shape[-1], dtype=logits.dtype).expand_as(logits)
    return logits, eye


def dense(queries, keys, tau, iterations, damping, rows=None, columns=None):
    """The definition, with the whole matrix."""
    B, H, S, _ = queries.shape
    rows = torch.ones(B, S, dtype=torch.bool) if rows is None else rows
    columns = rows if columns is None else columns
    logits = queries @ keys.repeat_interleave(H // keys.shape[1], 1).mT / tau
    allowed = torch.ones(S, S, dtype=torch.bool).tril() & columns[:, None, None]
    m = logits.masked_fill(~allowed, -torch.inf).softmax(-1).nan_to_num()
    start = (rows.to(m.dtype) / rows.sum(1, keepdim=True))[:, None, None]
    p = start.expand(B, H, 1, S)
    for _ in range(iterations):
        p = (1 - damping) * p @ m + damping * start
    return p.square().mean(1).sqrt()[:, 0]


def random_heads(B=2, H=4, kv=2, S=37, d=6, dtype=torch.float64):
    random = torch.Generator().manual_seed(5)
    return tuple(torch.randn(B, h, S, d, generator=random, dtype=dtype) / 2 for h in (H, kv))


def test_example():
    """One head, three rows: nearly all of the walk ends at row 0."""
    logits = torch.tensor([[0, 9, 9], [0.05, 0, 9], [0.1, 0, 0.02]])[None, None]
    scores = walk_scores(*from_logits(logits), **SETTINGS).exp()
    torch.testing.assert_close(scores, torch.tensor([[0.99364, 0.00605, 0.00031]]), atol=5e-6, rtol=0)


@pytest.mark.parametrize("damping", [0.0, 0.15])
@pytest.mark.parametrize("block", [1, 8, 37, 128])
def test_blocks_change_nothing(block, damping):
    """Against the whole matrix in float64, for grouped heads."""
    queries, keys = random_heads()
    settings = SETTINGS | {"damping": damping}
    found = walk_scores(queries, keys, **settings, block=block).exp()
    torch.testing.assert_close(found, dense(queries, keys, **settings), rtol=1e-9, atol=0)


@pytest.mark.parametrize("held", [0, 8 * 37 * 20, 8 * 37 * 20 * 3])
@pytest.mark.parametrize("rows", [None, 30])
def test_memory_changes_nothing(held, rows, monkeypatch):
    """Made anew in every step, or a few heads at a time, across rows of a batch."""
    queries, keys = random_heads(B=3)
    rows = None if rows is None else torch.arange(37) < torch.tensor([[rows], [37], [5]])
    settings = SETTINGS | {"damping": 0.15}
    monkeypatch.setattr(walk, "HELD", held)
    found = walk_scores(queries, keys, **settings, rows=rows, block=8).exp()
    wanted = dense(queries, keys, **settings, rows=rows)
    real = torch.ones(3, 37, dtype=torch.bool) if rows is None else rows
    torch.testing.assert_close(found[real], wanted[real], rtol=1e-9, atol=0)


def test_never_all_heads_at_once(monkeypatch):
    """No tensor is made that holds more than HELD bytes, while all heads take 60 times as much."""
    made = []
    squared = torch.Tensor.square_
    monkeypatch.setattr(torch.Tensor, "square_", lambda x: made.append(x.nbytes) or squared(x))
    monkeypatch.setattr(walk, "HELD", 2**20)
    queries, keys = random_heads(B=1, H=16, kv=4, S=700, dtype=torch.float32)
    walk_scores(queries, keys, tau=0.1, iterations=2, damping=0.0, block=64)
    assert 16 * 700 * 700 * 8 > 59 * 2**20
    assert max(made) <= 2**20


def test_shares_sum_to_one():
    """One head: every step keeps what there is."""
    queries, keys = random_heads(H=1, kv=1)
    scores = walk_scores(queries, keys, tau=0.3, iterations=3, damping=0.1).exp()
    torch.testing.assert_close(scores.sum(1), torch.ones(2, dtype=torch.float64))


def test_a_constant_per_row_changes_nothing():
    """Softmax does not see what is added to a whole row."""
    logits = torch.randn(1, 2, 20, 20, dtype=torch.float64)
    shifted = logits + torch.randn(1, 2, 20, 1, dtype=torch.float64)
    first, second = (walk_scores(*from_logits(x), **SETTINGS) for x in (logits, shifted))
    torch.testing.assert_close(first, second)


def test_padding_is_not_there():
    """Rows padded on either side, with wild values in them: real rows as alone, padded ones never reached."""
    queries, keys = random_heads(B=3, S=20)
    rows = torch.ones(3, 20, dtype=torch.bool)
    rows[0, :6] = False
    rows[1, 15:] = False
    queries, keys = (x.masked_fill(~rows[:, None, :, None], 40.0) for x in (queries, keys))
    found = walk_scores(queries, keys, **SETTINGS, rows=rows)
    for b in range(3):
        alone = walk_scores(queries[b : b + 1, :, rows[b]], keys[b : b + 1, :, rows[b]], **SETTINGS)
        torch.testing.assert_close(found[b, rows[b]], alone[0])
    assert (found[~rows] == -torch.inf).all()


def test_masked_columns_still_start():
    """The official way: a hidden token starts a walk, and is never gone to."""
    queries, keys = random_heads(B=1, S=12)
    columns = torch.ones(1, 12, dtype=torch.bool)
    columns[0, 3:6] = False
    found = walk_scores(queries, keys, **SETTINGS, columns=columns)
    torch.testing.assert_close(found.exp(), dense(queries, keys, **SETTINGS, columns=columns), rtol=1e-9, atol=0)
    assert (found[0, 3:6] == -torch.inf).all()
    left = columns[0]
    removed = walk_scores(queries[:, :, left], keys[:, :, left], **SETTINGS)
    assert not torch.allclose(found[0, left], removed[0])


def test_small_shares_are_told_apart():
    """A sink leaves shares that float32 holds as 0: they are ranked as in float64."""
    logits = torch.zeros(1, 1, 12, 12, dtype=torch.float64)
    logits[..., 0] = 6.0
    logits += torch.rand(1, 1, 12, 12, dtype=torch.float64) / 2
    exact = dense(*from_logits(logits), **SETTINGS)
    assert (exact[:, 1:].float() == 0).all()
    assert (exact > 0).all()
    found = walk_scores(*from_logits(logits.float()), **SETTINGS)
    assert found.argsort().tolist() == exact.argsort().tolist()
    torch.testing.assert_close(found.double(), exact.log(), rtol=1e-5, atol=1e-6)


def test_half_precision_is_walked_in_float32():
    """Queries and keys of a half-precision model."""
    queries, keys = (x.half() for x in random_heads())
    found = walk_scores(queries, keys, **SETTINGS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, dense(queries.double(), keys.double(), **SETTINGS).log().float())


def test_message():
    """Three query heads cannot share two key heads."""
    with pytest.raises(ValueError, match="3 query heads and 2 key heads"):
        walk_scores(torch.ones(1, 3, 4, 2), torch.ones(1, 2, 4, 2), **SETTINGS)
