"""Bipartite matching: the card's worked examples, masses, orders and steps."""

import pytest
import torch

from btp.core.selection import MergePlan
from btp.ops.bipartite import ORDERS, match_pairs, merge_to, size_bias
from btp.ops.merge import merge_sizes, merge_states

TOME = torch.tensor([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [0.9, 0.1], [-1, 0]])
TOME_X = torch.tensor([[10.0], [20], [30], [40], [50], [60]])
TOME_SIZES = torch.tensor([1, 1, 2, 1, 1, 3])
AIM = torch.tensor([[1, 0], [0.9, 0.1], [0, 1], [1, 1], [-1, 0], [0, 2]])


def merged(x, keep, plan):
    return merge_states(x[None], keep, plan)[0]


def random_metric(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def test_tome_example_with_a_class_token():
    """Row 0 is the class token and stays out: row 4 flows into row 1, row 2 into row 3."""
    keep, plan = merge_to(TOME[None, 1:], [5], [3], TOME_SIZES[None, 1:], "halves", lead=1)
    torch.testing.assert_close(merged(TOME_X[1:], keep, plan), torch.tensor([[35.0], [100 / 3], [60]]))
    assert merge_sizes(TOME_SIZES[None, 1:], keep, plan).tolist() == [[2, 3, 3]]


def test_tome_example_without():
    """Row 4 goes first; rows 0 and 2 tie, and the lower index goes: rows 0 and 4 flow into row 1."""
    keep, plan = merge_to(TOME[None], [6], [4], TOME_SIZES[None], "similar")
    assert keep.tolist() == [[2, 1, 3, 5]]
    torch.testing.assert_close(merged(TOME_X, keep, plan), torch.tensor([[30.0], [80 / 3], [40], [60]]))
    assert merge_sizes(TOME_SIZES[None], keep, plan).tolist() == [[2, 3, 1, 3]]


@pytest.mark.parametrize(
    ("left", "rows"),
    [(4, [[-1, 0], [0.95, 0.05], [1, 1], [0, 1.5]]), (3, [[0.95, 0.05], [1, 1], [-1 / 3, 1]])],
)
def test_aim_example(left, rows):
    """Plain means; of three in one group each weighs a third."""
    keep, plan = merge_to(AIM[None], [6], [left], None, "similar")
    torch.testing.assert_close(merged(AIM, keep, plan), torch.tensor(rows))


@pytest.mark.parametrize("lead", [0, 1])
@pytest.mark.parametrize("order", ORDERS)
def test_mass(order, lead):
    """However many steps: sizes sum to what was there, the weighted mean does not move, every token is somewhere."""
    x, size = random_metric(2, 45, 6).double(), torch.arange(90).view(2, 45) % 4 + 1
    keep, plan = merge_to(x, [45, 45], [5, 17], size, order, lead)
    states, sizes = merge_states(x, keep, plan), merge_sizes(size, keep, plan)
    assert sizes.sum(1).tolist() == size.sum(1).tolist()
    torch.testing.assert_close((states * sizes[..., None]).sum(1), (x * size[..., None]).sum(1))
    for b, count in enumerate((5, 17)):
        assert set(plan.target[b].tolist()) == set(keep[b, :count].tolist())


def test_one_plain_step_keeps_the_sum():
    """Members times row, summed, is the sum of all tokens."""
    x = random_metric(1, 30, 4).double()
    keep, plan = merge_to(x, [30], [20], None, "similar")
    members = torch.zeros(1, 30).scatter_add_(1, plan.target, torch.ones(1, 30)).gather(1, keep)
    torch.testing.assert_close((merge_states(x, keep, plan) * members[..., None]).sum(1), x.sum(1))


def test_nested_plain_means():
    """Two steps at once are one after the other: what merges in the second weighs more than what did in the first."""
    x = random_metric(1, 16, 4).double()
    keep, plan = merge_to(x, [16], [3], None, "similar")
    for left in (8, 4, 3):
        n = x.shape[1]
        one_keep, one = merge_to(x, [n], [left], None, "similar")
        x = merge_states(x, one_keep, one)
    torch.testing.assert_close(merge_states(random_metric(1, 16, 4).double(), keep, plan), x)


def test_weighted_steps_merge_the_metric_by_size():
    """The same for ToMe: sizes are carried, so that four steps are four single ones."""
    start, size = random_metric(8, 48, 4).double(), torch.arange(48).expand(8, 48) % 7 + 1
    keep, plan = merge_to(start, [48] * 8, [4] * 8, size, "raster")
    x = start
    for left in (24, 12, 6, 4):
        one_keep, one = merge_to(x, [x.shape[1]] * 8, [left] * 8, size, "raster")
        x, size = merge_states(x, one_keep, one), merge_sizes(size, one_keep, one)
    torch.testing.assert_close(merge_states(start, keep, plan), x)


def test_steps_halve_at_most():
    """576 to 64 goes over 288, 144 and 72; half in one step leaves all destinations, in their order."""
    start = random_metric(1, 576, 8)
    assert merge_to(start, [576], [288], None, "similar")[0][0].tolist() == list(range(1, 576, 2))
    x, left = start, torch.arange(576)[None]
    for remove in (288, 144, 72, 8):
        keep, target = match_pairs(x, [x.shape[1]], [remove], "raster")
        x = merge_states(x, keep, MergePlan(target, torch.ones(target.shape)))
        left = left.gather(1, keep)
    assert merge_to(start, [576], [64], None, "raster")[0].tolist() == left.tolist()


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("lead", [0, 1])
@pytest.mark.parametrize("order", ORDERS)
def test_rows_do_not_see_each_other(order, lead, weighted):
    """Ragged rows, different counts and numbers of steps: each as alone; padding holds anything."""
    alive, counts = (33, 20, 7, 1, 5), (9, 20, 1, 1, 0)
    x = random_metric(5, 33, 6)
    for b, n in enumerate(alive):
        x[b, n:] = 1e3
    size = torch.arange(33).expand(5, 33) % 5 + 1 if weighted else None
    keep, plan = merge_to(x, alive, counts, size, order, lead)
    assert keep.shape == (5, 20)
    for b, (n, k) in enumerate(zip(alive, counts, strict=True)):
        own = size[b : b + 1, :n] if weighted else None
        one_keep, one = merge_to(x[b : b + 1, :n], [n], [k], own, order, lead)
        assert keep[b].tolist() == one_keep[0].tolist() + [-1] * (20 - k)
        assert plan.target[b].tolist() == one.target[0].tolist() + [-1] * (33 - n)
        torch.testing.assert_close(plan.weight[b, :n], one.weight[0])
    assert plan.target[4].tolist() == [-1] * 33, "what goes altogether flows nowhere"


def test_orders():
    """Sources that stay: raster mixes them with destinations, halves puts them first, similar the most alike ahead."""
    x = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0.5, 1], [0, -1], [0.1, 1]])
    assert match_pairs(x[None], [6], [1], "raster")[0].tolist() == [[1, 2, 3, 4, 5]]
    assert match_pairs(x[None], [6], [1], "halves")[0].tolist() == [[2, 4, 1, 3, 5]]
    x[4] = torch.tensor([0.1, 1])  # equal to row 5: ties with row 0, which goes first, and is ahead of row 2
    assert match_pairs(x[None], [6], [1], "similar")[0].tolist() == [[4, 2, 1, 3, 5]]
    assert merge_to(x[None], [6], [6], None, "similar")[0].tolist() == [[0, 1, 2, 3, 4, 5]]


def test_every_third():
    """The last of each group of three is a destination; all others may go in one step."""
    x = random_metric(1, 9, 4)
    keep, target = match_pairs(x, [9], [6], "raster", every=3)
    assert keep.tolist() == [[2, 5, 8]]
    assert set(target[0].tolist()) == {2, 5, 8}


def test_constant_tokens_stay():
    """Equal rows merge to themselves; a zero vector hurts nothing."""
    x = torch.full((1, 10, 3), 2.5)
    keep, plan = merge_to(x, [10], [2], torch.ones(1, 10), "raster")
    torch.testing.assert_close(merge_states(x, keep, plan), x[:, :2])
    keep, plan = merge_to(torch.zeros(1, 10, 3), [10], [2], None, "raster")
    assert plan.weight.isfinite().all()


def test_unmerging_equal_groups():
    """Pairs of equal tokens merge, and broadcasting them back gives what was there."""
    x = random_metric(1, 8, 5).repeat_interleave(2, 1)
    keep, plan = merge_to(x, [16], [8], torch.ones(1, 16), "raster")
    rows = torch.zeros_like(x).scatter_(1, keep[..., None].expand(-1, -1, 5), merge_states(x, keep, plan))
    torch.testing.assert_close(rows.gather(1, plan.target[..., None].expand_as(x)), x)


def test_proportional_attention_of_a_duplicate():
    """A token of size 2 is attended to exactly as two equal tokens are; size 1 changes nothing."""
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 6, 4, generator=random).double() for _ in range(3))
    k[:, 5], v[:, 5] = k[:, 4], v[:, 4]
    size = torch.tensor([[1, 1, 1, 1, 2]])
    both = (q @ k.mT).softmax(-1) @ v
    one = (q @ k[:, :5].mT + size_bias(size)[:, None]).softmax(-1) @ v[:, :5]
    torch.testing.assert_close(one, both)
    assert size_bias(torch.tensor([[1, 1, 0]])).tolist() == [[0, 0, -torch.inf]]


def test_half_precision_is_compared_in_float32():
    """Cosines that float16 would round to ties are told apart."""
    x = torch.tensor([[1.0, 0.02], [1, 0], [1, 0.01], [0, 1]], dtype=torch.float16)
    keep, target = match_pairs(x[None], [4], [1], "raster")
    assert keep.tolist() == [[0, 1, 3]]
    assert target.tolist() == [[0, 1, 1, 3]]


def test_the_plan_is_a_mean():
    """Weights are per token and need no sum of one."""
    _, plan = merge_to(random_metric(1, 6, 3), [6], [2], torch.full((1, 6), 3), "raster")
    assert isinstance(plan, MergePlan)
    assert plan.combine == "mean"
    assert plan.weight.tolist() == [[3.0] * 6]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: match_pairs(x, [6], [1], "best"), "order is 'best'. Choose from: raster, halves, similar"),
        (lambda x: match_pairs(x, [6], [4], "raster"), "remove 4 of 6 tokens, but one step removes 0 to 3"),
        (lambda x: match_pairs(x, [1], [1], "raster"), "remove 1 of 1 tokens, but one step removes 0 to 0"),
        (lambda x: merge_to(x, [6], [7], None, "raster"), r"asked for \(7,\) of \(6,\) tokens"),
    ],
)
def test_messages(call, message):
    """What cannot be done is said."""
    with pytest.raises(ValueError, match=message):
        call(torch.ones(1, 6, 2))
