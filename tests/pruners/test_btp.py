"""BTP: the worked examples and the limits in which it is another method."""

from dataclasses import replace

import pytest
import torch
from checked_selection import check_selection
from hand import row, signals, stage, tokens

from btp.core.schedule import Schedule
from btp.core.signals import Signal, Signals
from btp.core.topk import top_k
from btp.ops.farthest_point import farthest_points
from btp.ops.grid_spread import spatial_seeds
from btp.pruners.btp import BTP

SETTINGS = {
    "score": "logits",
    "source": "last",
    "over": 1.5,
    "split": "half",
    "seed": 0.25,
    "distance": "manhattan",
}


def btp(**changed):
    return BTP(**SETTINGS | changed)


def nothing(rows):
    return torch.empty(rows, 0, dtype=torch.long)


def test_attention_alone_is_top_k():
    """balance = 1 and over = 1: the highest attention in the layer before, as FastV ranks."""
    pruner, seen, at = btp(over=1.0), tokens(16, 9), stage(balance=1.0)
    values = signals(pruner, seen, at)
    scores = values[Signal("attention", "llm.layer.1", "last", "logits")].mean((1, 2))
    assert torch.equal(pruner.select(seen, values, at).keep, top_k(scores, (8, 4), seen.valid))


def test_diversity_alone_is_max_min():
    """balance = 0 and no seed: farthest points from scratch, as DivPrune has them; no signal is asked for."""
    pruner, seen, at = btp(seed=0.0), tokens(16, 9), stage("llm.input", balance=0.0)
    assert pruner.needs(at) == ()
    keep = pruner.select(seen, Signals(), at).keep
    assert torch.equal(keep, farthest_points(seen.hidden, nothing(2), (8, 4), seen.valid))


def test_rebalancing_example():
    """N = 8, k = 4, over = 1.5: of the top six, early 1 and 3, then 4 and 5."""
    scores = torch.tensor([0.1, 0.9, 0.2, 0.3, 0.8, 0.7, 0.6, 0.5])
    pruner, seen, at = btp(), tokens(8), stage(balance=1.0)
    values = Signals({Signal("attention", "llm.layer.1", "last", "logits"): scores.view(1, 1, 1, 8)})
    assert pruner.select(seen, values, at).keep.tolist() == [[1, 3, 4, 5]]


def test_where_early_ends():
    """half: below N / 2, also for an odd N; keep: below k."""
    scores = torch.arange(9.0).view(1, 1, 1, 9)
    values = Signals({Signal("attention", "llm.layer.1", "last", "logits"): scores})
    seen, at = tokens(9), stage(keep=2, balance=1.0, over=3.0)  # candidates 8 7 6 5 4 3
    assert btp(split="half").select(seen, values, at).keep.tolist() == [[3, 4]]
    assert btp(split="keep").select(seen, values, at).keep.tolist() == [[7, 8]]


def test_order_of_parts():
    """Attention first, then the grid, then the farthest from both."""
    pruner, seen, at = btp(), tokens(16), stage(keep=8, balance=0.25)
    values = signals(pruner, seen, at)
    scores = values[Signal("attention", "llm.layer.1", "last", "logits")].mean((1, 2))[0]
    top = scores.topk(3).indices.tolist()
    attended = (sorted(i for i in top if i < 8) + [i for i in top if i >= 8])[:2]
    if len([i for i in top if i < 8]) > 2:
        attended = [i for i in top if i < 8][:2]
    seeds = list(spatial_seeds(seen.coord, seen.image, [4], "manhattan")[0])
    chosen = torch.tensor([attended + seeds])
    assert pruner.select(seen, values, at).keep.tolist() == farthest_points(seen.hidden, chosen, 8).tolist()
    assert set(seeds) | set(attended) <= set(pruner.select(seen, values, at).keep[0].tolist())


def test_seed_fills_what_attention_leaves():
    """A seed larger than the rest of k is cut in its own order of picking, attention never."""
    pruner, seen, at = btp(seed=0.75, over=1.0), tokens(16), stage(keep=6, balance=0.5)
    values = signals(pruner, seen, at)
    scores = values[Signal("attention", "llm.layer.1", "last", "logits")].mean((1, 2))[0]
    attended = scores.topk(3).indices.tolist()
    seeds = [i for i in spatial_seeds(seen.coord, seen.image, [12], "manhattan")[0] if i not in attended]
    assert pruner.select(seen, values, at).keep.tolist() == [sorted(attended + seeds[:3])]


def test_a_round_from_scratch():
    """floor(scratch k) farthest points as if nothing had been chosen, united with attention's, then the rest."""
    pruner, seen = btp(seed=0.0, over=1.0), tokens(16, 11)
    at, counts = stage(keep=0.5, balance=0.4, scratch=0.3), (8, 5)
    values = signals(pruner, seen, at)
    scores = values[Signal("attention", "llm.layer.1", "last", "logits")].mean((1, 2))
    attended = top_k(scores, (3, 2), seen.valid)
    alone = farthest_points(seen.hidden, nothing(2), (2, 1), seen.valid)
    keep = pruner.select(seen, values, at).keep
    expected = farthest_points(seen.hidden, torch.cat([attended, alone], dim=1), counts, seen.valid)
    assert torch.equal(keep, expected)
    without = pruner.select(seen, values, stage(keep=0.5, balance=0.4)).keep
    assert torch.equal(pruner.select(seen, values, stage(keep=0.5, balance=0.4, scratch=0.0)).keep, without)
    assert not torch.equal(keep, without)


def test_a_token_that_two_rules_choose_is_kept_once():
    """Attention and the round from scratch choose the same token; another takes its place."""
    pruner, seen = btp(seed=0.0, over=1.0), tokens(12)
    at = stage(keep=4, balance=0.5, scratch=0.25)
    (first,) = farthest_points(seen.hidden, nothing(1), 1)[0].tolist()
    scores = torch.zeros(12).index_fill(0, torch.tensor([first, (first + 1) % 12]), 1.0)
    values = Signals({Signal("attention", "llm.layer.1", "last", "logits"): scores.view(1, 1, 1, 12)})
    keep = pruner.select(seen, values, at).keep
    check_selection(pruner.select(seen, values, at), (4,), (12,), "btp", at.site)
    chosen = torch.tensor([[first, (first + 1) % 12]])
    assert torch.equal(keep, farthest_points(seen.hidden, chosen, 4))


def test_seeds_give_way_to_attention_and_scratch():
    """Where the parts are more than k together, the last seeds are left out."""
    pruner, seen = btp(seed=0.75, over=1.0), tokens(16)
    at = stage(keep=8, balance=0.25, scratch=0.25)
    values = signals(pruner, seen, at)
    scores = values[Signal("attention", "llm.layer.1", "last", "logits")].mean((1, 2))[0]
    first = {*scores.topk(2).indices.tolist(), *farthest_points(seen.hidden, nothing(1), 2)[0].tolist()}
    seeds = [i for i in spatial_seeds(seen.coord, seen.image, [12], "manhattan")[0] if i not in first]
    assert pruner.select(seen, values, at).keep[0].tolist() == sorted([*first, *seeds[: 8 - len(first)]])


@pytest.mark.parametrize("k", [48, 58, 140, 216, 400])
def test_a_surplus_is_rounded_down_twice(k):
    """int(int(0.1 k) 1.2): of 48 these are 4, where 12% are 5."""
    pruner, seen = btp(seed=0.0, over=1.0), tokens(2 * k)
    at = stage(keep=k, balance=0.1, surplus=1.2)
    rules = pruner.explain(seen, signals(pruner, seen, at), at)
    assert int(rules["attention"].sum()) == int(int(0.1 * k) * 1.2)
    assert not rules["rebalancing"].any()


def test_seed_only_while_the_grid_is_whole():
    """Rows that lost tokens are not seeded; in one batch, each row by itself."""
    at = stage(keep=0.25, balance=0.0)
    seen = tokens(16, 12, total=(16, 16))
    keep = btp().select(seen, Signals(), at).keep
    assert keep[0].tolist() == [0, 3, 9, 15]
    assert keep[1].tolist() == farthest_points(seen.hidden[1:, :12], nothing(1), 4)[0].tolist()


def test_kept_sets_are_nested():
    """Stage by stage, each of exactly its count."""
    pruner, seen = btp(), tokens(32, 20)
    for at in (
        stage("llm.layer.2", 0.5, balance=0.4),
        stage("llm.layer.4", 0.25, balance=0.7),
        stage("llm.layer.6", 0.125, balance=1.0),
    ):
        counts = seen.keep_counts(at)
        chosen = pruner.select(seen, signals(pruner, seen, at), at)
        check_selection(chosen, counts, seen.host_alive, "btp", at.site)
        before, take = seen.index, chosen.keep.clamp(min=0)
        seen = replace(
            seen,
            hidden=seen.hidden.gather(1, take[..., None].expand(-1, -1, seen.hidden.shape[2])),
            index=before.gather(1, take),
            coord=seen.coord.gather(1, take[..., None].expand(-1, -1, 3)),
            valid=chosen.keep >= 0,
            host_alive=counts,
        )
        for b in range(2):
            assert set(seen.index[b, : counts[b]].tolist()) <= set(before[b].tolist())
    assert counts == (4, 2)


@pytest.mark.parametrize("source", ["last", "mean", "similar"])
@pytest.mark.parametrize("score", ["logits", "probs"])
@pytest.mark.parametrize("split", ["half", "keep"])
def test_every_form_is_the_same_alone(source, score, split):
    """Rows of different length, kept counts and text."""
    pruner = btp(source=source, score=score, split=split)
    seen, at = tokens(24, 17, 5), stage(balance=0.6)
    values = signals(pruner, seen, at)
    keep = pruner.select(seen, values, at).keep
    check_selection(pruner.select(seen, values, at), (12, 8, 2), seen.host_alive, "btp", at.site)
    for b, count in enumerate((12, 8, 2)):
        alone, its_values = row(b, seen, values)
        assert pruner.select(alone, its_values, at).keep[0].tolist() == keep[b, :count].tolist()


def test_signals():
    """One row of attention; for `similar` the text rows and their states too."""
    at = stage(balance=0.6)
    assert btp().needs(at) == (Signal("attention", "llm.layer.1", "last", "logits"),)
    assert btp(source="similar", score="probs").needs(at) == (
        Signal("attention", "llm.layer.1", "text", "probs"),
        Signal("hidden", "llm.layer.2", "text"),
    )


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"site": "llm.layer.2", "keep": 0.5}], r"schedule.0.balance is missing"),
        (
            [{"site": "llm.layer.2", "keep": 0.5, "balance": 1.5}],
            r"schedule.0.balance is 1.5. .* in \[0, 1\]",
        ),
        ([{"site": "llm.layer.2", "keep": 0.5, "balance": "high"}], r"schedule.0.balance is 'high'"),
        (
            [{"site": "llm.layer.2", "keep": 0.5, "balance": 1, "over": 0.5}],
            r"schedule.0.over is 0.5. .* 1 or more",
        ),
        ([{"site": "llm.layer.2", "keep": 0.5, "balance": 1, "seed": -1}], r"schedule.0.seed is -1"),
        ([{"site": "llm.layer.2", "keep": 0.5, "balance": 0.1, "scratch": 1.5}], r"schedule.0.scratch is 1.5"),
        ([{"site": "llm.layer.2", "keep": 0.5, "balance": 0.1, "surplus": 0.5}], r"schedule.0.surplus is 0.5"),
        (
            [{"site": "llm.layer.2", "keep": 0.5, "balance": 0.6, "surplus": 1.5, "scratch": 0.2}],
            r"schedule.0.scratch is 0.2 and attention chooses 0.9 of what stays .* Lower schedule.0.scratch",
        ),
        (
            [{"site": "llm.layer.2", "keep": 0.5, "balance": 0, "surplus": 1.2}],
            r"schedule.0.surplus is 1.2, but balance is 0",
        ),
        ([{"site": "llm.layer.2", "keep": 0, "scratch": 0.3}], r"schedule.0.scratch has no effect: keep is 0"),
        ([{"site": "llm.layer.2", "keep": 0.5, "lambda": 1}], r"schedule.0.lambda is set, but pruner 'btp'"),
        ([{"site": "llm.layer.2", "keep": 0, "balance": 1}], r"schedule.0.balance has no effect: keep is 0"),
        (
            [{"site": "llm.layer.0", "keep": 0.5, "balance": 0.1}],
            r"llm.layer.0, but .* there is none. Set schedule.0.site to llm.layer.1 or later, or s",
        ),
        ([{"site": "llm.input", "keep": 0.5, "balance": 0.1}], r"schedule.0.site is llm.input"),
        ([{"site": "vision.layer.3", "keep": 0.5, "balance": 0.0}], r"works between decoder layers"),
        ([{"site": "llm.cache.3", "keep": 0.5, "balance": 0.5}], r"works between decoder layers"),
        (
            [
                {"site": "llm.layer.2", "keep": 0.5, "balance": 0.1},
                {"site": "llm.layer.4", "keep": 0.2, "balance": 0.1, "seed": 0.1},
            ],
            r"schedule.1.seed is set, but only the first stage",
        ),
    ],
)
def test_stage_messages(stages, message):
    """What a stage cannot mean is refused with its key."""
    with pytest.raises(ValueError, match=message):
        btp().check(Schedule.from_config(stages))


def test_accepted_schedules():
    """No attention is needed where balance is 0; a withdrawing stage needs no balance."""
    btp().check(
        Schedule.from_config(
            [
                {"site": "llm.input", "keep": 0.5, "balance": 0, "seed": 0.1, "over": 2},
                {"site": "llm.layer.1", "keep": 0.2, "balance": 0.9, "scratch": 0.1},
                {"site": "llm.layer.2", "keep": 0.1, "balance": 1.0, "scratch": 0},
                {"site": "llm.layer.3", "keep": 0},
            ]
        )
    )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("over", 0.9, "pruner.method.over is 0.9"),
        ("seed", 1.1, "pruner.method.seed is 1.1"),
        ("split", "third", "pruner.method.split is 'third'. Choose from: half, keep"),
        ("distance", "cosine", "pruner.method.distance is 'cosine'"),
        ("score", "raw", "pruner.method.score is 'raw'"),
    ],
)
def test_method_messages(key, value, message):
    """The same for the method's own settings."""
    with pytest.raises(ValueError, match=message):
        btp(**{key: value})
