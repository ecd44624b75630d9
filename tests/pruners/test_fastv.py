"""FastV: the card's example, its limits as other methods, and the cut that no layer precedes."""

from dataclasses import replace

import pytest
import torch
from hand import row, signals, stage, tokens

from btp.core.schedule import Schedule
from btp.core.signals import Signal, Signals
from btp.core.topk import top_k
from btp.pruners.btp import BTP
from btp.pruners.fastv import FastV
from btp.pruners.random import Random

LAST = Signal("attention", "llm.layer.1", "last", "probs")


def fastv(**changed):
    return FastV(**{"score": "probs", "query": "last", "seed": 0} | changed)


def worked(columns):
    """The card's two heads over 2 tokens in front, 6 visual ones and 3 behind; columns of the visual ones."""
    first = [0.10, 0.05, 0.02, 0.20, 0.05, 0.08, 0.10, 0.05, 0.10, 0.10, 0.15]
    second = [0.20, 0.05, 0.06, 0.04, 0.15, 0.08, 0.02, 0.15, 0.05, 0.10, 0.10]
    return torch.tensor([first, second])[:, columns].view(1, 2, 1, -1)


def test_worked_example():
    """Mean over heads .04 .12 .10 .08 .06 .10: 1, 2 and 5 stay; of two equal ones the lower."""
    seen, values = tokens(6), Signals({LAST: worked(slice(2, 8))})
    torch.testing.assert_close(
        fastv().score(seen, values, stage()), torch.tensor([[0.04, 0.12, 0.10, 0.08, 0.06, 0.10]])
    )
    assert fastv().select(seen, values, stage(keep=3)).keep.tolist() == [[1, 2, 5]]
    assert fastv().select(seen, values, stage(keep=2)).keep.tolist() == [[1, 2]]


def test_logits_rank_otherwise():
    """One head that is sure of token 0 outweighs another in probabilities, not in logits."""
    logits = torch.tensor([[4.0, 0.0, 0.0, 0.0], [-9.0, 1.0, 0.5, 0.0]]).view(1, 2, 1, 4)
    seen = tokens(4)
    by_probs = fastv().select(seen, Signals({LAST: logits.softmax(-1)}), stage(keep=1)).keep
    form = Signal("attention", "llm.layer.1", "last", "logits")
    by_logits = fastv(score="logits").select(seen, Signals({form: logits}), stage(keep=1)).keep
    assert (by_probs.tolist(), by_logits.tolist()) == ([[0]], [[1]])


def test_is_btp_without_diversity():
    """balance = 1 and over = 1, by probabilities."""
    seen, at = tokens(20, 11), stage()
    values = signals(fastv(), seen, at)
    btp = BTP(score="probs", source="last", over=1.0, split="half", seed=0.0, distance="manhattan")
    theirs = btp.select(seen, values, stage(balance=1.0)).keep
    assert torch.equal(fastv().select(seen, values, at).keep, theirs)


def test_mean_over_all_queries():
    """The signal is averaged over rows already; heads are averaged here."""
    pruner, seen, at = fastv(query="mean"), tokens(12, 7), stage()
    assert pruner.needs(at) == (Signal("attention", "llm.layer.1", "mean", "probs"),)
    values = signals(pruner, seen, at)
    scores = next(iter(values.values())).mean((1, 2))
    assert torch.equal(pruner.select(seen, values, at).keep, top_k(scores, (6, 3), seen.valid))


@pytest.mark.parametrize("site", ["llm.input", "llm.layer.0"])
def test_by_lot_where_no_layer_precedes(site):
    """K = 0: no signal; the numbers of the control, from the seed and not from the global generator."""
    seen, at = tokens(30, 12), stage(site)
    pruner = fastv(seed=3)
    assert pruner.needs(at) == ()
    state = torch.get_rng_state()
    keep = pruner.select(seen, Signals(), at).keep
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(keep, Random(seed=3, salt="content").select(seen, Signals(), at).keep)
    assert not torch.equal(keep, fastv(seed=4).select(seen, Signals(), at).keep)
    for b, count in enumerate((15, 6)):
        alone, _ = row(b, seen, Signals())
        assert pruner.select(alone, Signals(), at).keep[0].tolist() == keep[b, :count].tolist()


def test_layer_in_front_of_the_stage():
    """The stage at llm.layer.3 looks at layer 2."""
    assert fastv(score="logits").needs(stage("llm.layer.3")) == (Signal("attention", "llm.layer.2", "last", "logits"),)


def test_padding_is_not_ranked():
    """However high it looks."""
    seen = tokens(8, 3)
    high = torch.ones(2, 3, 1, 8) * torch.arange(8)
    keep = fastv().select(seen, Signals({LAST: high}), stage(keep=0.7)).keep
    assert keep.tolist() == [[3, 4, 5, 6, 7], [1, 2, -1, -1, -1]]
    assert replace(seen, host_alive=None).keep_counts(stage(keep=0.7)) == (5, 2)


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("vision.output", "schedule.0.site is vision.output, but pruner 'fastv' ranks by the attention of a decoder"),
        ("llm.cache.2", "schedule.0.site is llm.cache.2"),
    ],
)
def test_stage_messages(site, message):
    """Only between decoder layers."""
    with pytest.raises(ValueError, match=message):
        fastv().check(Schedule.from_config([{"site": site, "keep": 0.5}]))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"score": "raw"}, "pruner.method.score is 'raw'. Choose from: probs, logits"),
        ({"query": "all"}, "pruner.method.query is 'all'. Choose from: last, mean"),
        ({"query": "mean", "score": "logits"}, "pruner.method.query is mean with score logits"),
        ({"seed": None}, "pruner.method.seed is None"),
    ],
)
def test_method_messages(changed, message):
    """Unknown settings, and a mean that has no meaning."""
    with pytest.raises(ValueError, match=message):
        fastv(**changed)
