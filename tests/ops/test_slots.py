"""Operations on slots, by hand; masks from positions; the choice of slots."""

import pytest
import torch

from btp.core.signals import Signal
from btp.core.site import Site
from btp.core.topk import keep_best
from btp.engine.cache.slot_signals import BLOCK, slot_signal
from btp.engine.hooks.attention_registry import Attending
from btp.engine.hooks.slot_masks import as_mask, seen_slots
from btp.ops.slots import gather_slots, of_groups, page_sums, pooled, rows_that_count, spread
from btp.schedules.place import place_stages


def test_groups_pools_and_means():
    x = torch.arange(8.0).view(1, 4, 2)
    assert of_groups(x, 2).tolist() == [[[2, 4], [10, 12]]]
    assert of_groups(x, 2, mean=True).tolist() == [[[1, 2], [5, 6]]]
    y = torch.tensor([[[3.0, 0, 0, 6, 0]]])
    assert pooled(y, 3).tolist() == [[[3, 3, 6, 6, 6]]]
    assert pooled(y, 3, "mean").tolist() == [[[1, 1, 2, 2, 2]]]
    rows = torch.tensor([[[[9.0, 9], [1, 2], [3, 4]]]])
    assert spread(rows, torch.tensor([[False, True, True]])).tolist() == [[[2, 3]]]


def test_pages_count_slots_with_a_token():
    """A row that is filled in front begins its first page behind the filling."""
    x = torch.tensor([[[9.0, 1, 2, 3, 4]], [[1, 2, 3, 4, 5]]])
    valid = torch.tensor([[[False, True, True, True, True]], [[True] * 5]])
    assert page_sums(x, valid, 2).tolist() == [[[3, 7, 0]], [[3, 7, 5]]]


def test_gathering_over_heads():
    """Either side may have one head for all."""
    x, index = torch.arange(6).view(1, 2, 3), torch.tensor([[[2, 0]]])
    assert gather_slots(x, index).tolist() == [[[2, 0], [5, 3]]]
    assert gather_slots(x[:, :1], torch.tensor([[[0], [1]]])).tolist() == [[[0], [1]]]
    assert gather_slots(x[..., None], index).shape == (1, 2, 2, 1)


def test_the_best_slots():
    """Ties keep the first; the quick way, where one goes, and the sorted one agree; shorter rows are padded."""
    scores = torch.tensor([[[2.0, 1, 1, 3]]])
    every = torch.ones(1, 1, 4, dtype=torch.bool)
    assert keep_best(scores, (3,), every, (4,)).tolist() == [[[0, 1, 3]]]
    assert keep_best(scores, (2,), every, (4,)).tolist() == [[[0, 3]]]
    torch.manual_seed(0)
    x = torch.randint(0, 9, (2, 3, 20)).float()
    real = torch.ones(2, 3, 20, dtype=torch.bool)
    order = [row.sort(dim=-1, descending=True, stable=True).indices for row in x]
    sorted_way = torch.stack([row[:, :19].sort(-1).values for row in order])
    assert torch.equal(keep_best(x, (19, 19), real, (20, 20)), sorted_way)
    real[1, :, :5] = False
    kept = keep_best(x, (19, 14), real, (20, 15))
    assert (kept[1, :, 14:] == -1).all()
    assert (kept[1, :, :14] >= 5).all()


def test_a_row_sees_earlier_slots_that_hold_a_token():
    """Whoever has no token sees itself alone, and nobody sees it."""
    slot = torch.tensor([[[0, 5, -1, 7, -1]]])
    row = torch.tensor([[7, -1]])
    assert seen_slots(row, slot)[0, 0].int().tolist() == [[1, 1, 0, 1, 0], [0, 0, 0, 0, 1]]
    query = torch.zeros(1, 4, 2, 8)
    wide = seen_slots(row, slot.expand(1, 2, 5))
    assert as_mask(wide, "sdpa", query, 2).shape == (1, 4, 2, 5)
    added = as_mask(seen_slots(row, slot), "eager", query, 2)
    assert added[0, 0, 0].tolist() == [0, 0, torch.finfo(torch.float32).min, 0, torch.finfo(torch.float32).min]


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("masked", [False, True])
def test_decayed_sums(decay, masked):
    """Blocks of rows add up to the sum over all of them; grouped heads, more rows than a block."""
    torch.manual_seed(0)
    n = BLOCK + 37
    q, k = torch.randn(1, 4, n, 8), torch.randn(1, 2, n, 8)
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    logits = (q @ k.repeat_interleave(2, 1).mT * 8**-0.5).masked_fill(~causal, -torch.inf)
    weight = torch.tensor(decay) ** torch.arange(n - 1, -1, -1)
    plain = (logits.softmax(-1) * weight[:, None]).sum(2, keepdim=True)
    mask = torch.zeros(1, 1, n, n).masked_fill(~causal, torch.finfo(torch.float32).min) if masked else None
    now = Attending(1, q, k, k, mask, 8**-0.5, lambda mask: None)
    signal = Signal("attention", "llm.cache.1", "decayed", decay=decay)
    real = torch.ones(1, n, dtype=torch.bool)
    for even in (True, False):
        assert torch.allclose(slot_signal(signal, now, real, even)[0], plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("given", [None, "bool", "added"])
def test_decayed_sums_of_padded_rows(given):
    """A row of a padded batch has the sums that it has alone, whoever made the mask, and 0 for its padding."""
    torch.manual_seed(0)
    n, gone = BLOCK + 37, 50
    q, k = torch.randn(2, 4, n, 8), torch.randn(2, 2, n, 8)
    real = torch.ones(2, n, dtype=torch.bool)
    real[1, :gone] = False
    seen = (torch.ones(n, n, dtype=torch.bool).tril() & real[:, None])[:, None]
    seen[1, :, :gone] |= torch.eye(n, dtype=torch.bool)[:gone]  # as attention masks have it, so that no row is empty
    added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    mask = {None: None, "bool": seen, "added": added}[given]
    signal = Signal("attention", "llm.cache.1", "decayed", decay=0.99)
    both = slot_signal(signal, Attending(1, q, k, k, mask, 8**-0.5, lambda mask: None), real, False)[0]
    for row, start in enumerate((0, gone)):
        one = Attending(1, q[row, None, :, start:], *(k[row, None, :, start:],) * 2, None, 8**-0.5, lambda mask: None)
        alone = slot_signal(signal, one, real[row, None, start:], True)[0]
        assert torch.allclose(both[row, ..., start:], alone[0], atol=1e-5)
        assert not both[row, ..., :start].any()


def test_rows_that_count():
    """As in the closed form, and never more than there are."""
    assert rows_that_count(0.0, 50) == 1
    assert rows_that_count(1.0, 50) == 50
    for decay in (0.1, 0.5, 0.95):
        w = rows_that_count(decay, 10**6)
        assert decay**w / (1 - decay) <= 1e-6 < decay ** (w - 1) / (1 - decay)
    assert rows_that_count(0.95, 20) == 20


@pytest.mark.parametrize(
    ("rows", "more"),
    [("window", {}), ("window", {"window": 0}), ("decayed", {}), ("decayed", {"decay": 1.5}), ("last", {"window": 2})],
)
def test_rows_with_a_number(rows, more):
    with pytest.raises(ValueError, match="others none"):
        Signal("attention", "llm.cache.1", rows, **more)


def test_sites_of_every_cache():
    """Read, written, behind all others, and placed at the same share of any depth."""
    every = Site.parse("llm.cache.*")
    assert str(every) == "llm.cache.*"
    assert every.every_layer
    assert every > Site.parse("llm.cache.31")
    assert every.of_layer(3) == Site.parse("llm.cache.3")
    stages = [{"site": "llm.cache.8/32", "keep": 4}, {"site": "llm.cache.*", "keep": 4}]
    assert [s["site"] for s in place_stages(stages, 8)] == ["llm.cache.2", "llm.cache.*"]
    with pytest.raises(ValueError, match="rows window are those of a cache"):
        Signal("attention", "llm.layer.1", "window", window=4)
