"""Why a token stays: what methods tell of themselves adds up to what they do."""

from itertools import product

import pytest
import torch
from hand import signals, stage, tokens
from test_contract import NAMES, build, kept_stages

from btp.core.pruner import ScorePruner
from btp.core.signals import Signal
from btp.core.topk import marked, top_k
from btp.pruners.attention import Attention
from btp.pruners.btp import BTP
from btp.pruners.composition import Chain
from btp.pruners.diversity import Diversity
from btp.runner.explain.recording_pruner import Witness

RULES = ["attention", "rebalancing", "farthest from scratch", "spatial seed", "diversity"]
SETTINGS = {"score": "logits", "source": "last", "over": 1.5, "split": "half", "seed": 0.25, "distance": "manhattan"}


def told(pruner, seen, at):
    """Rules and scores of a decision, and what was kept."""
    values = signals(pruner, seen, at)
    said = pruner.explain(seen, values, at)
    kept = marked(pruner.select(seen, values, at).keep, seen.valid.shape[1])
    rules = {name: value & seen.valid for name, value in said.items() if value.dtype == torch.bool}
    return rules, {name: value for name, value in said.items() if value.is_floating_point()}, kept


@pytest.mark.parametrize(
    ("balance", "over", "split", "seed", "keep", "scratch"),
    [
        case
        for case in product((0.0, 0.4, 1.0), (1.0, 2.5), ("half", "keep"), (0.0, 0.25, 1.0), (0.5, 3, 1.0), (0, 0.6))
        if case[0] + case[-1] <= 1
    ],
)
def test_the_rules_of_btp_add_up(balance, over, split, seed, keep, scratch):
    """Every kept token has one rule, no other has any; also in rows of which some tokens are gone."""
    pruner = BTP(**SETTINGS | {"over": over, "split": split, "seed": seed})
    seen, at = tokens(24, 15, 9, total=(24, 20, 9)), stage(keep=keep, balance=balance, scratch=scratch)
    rules, _, kept = told(pruner, seen, at)
    assert set(rules) <= set(RULES)
    summed = torch.stack(list(rules.values())).sum(0)
    assert torch.equal(summed, kept.long())
    by_attention = sum((rules[name].sum(1) for name in ("attention", "rebalancing") if name in rules), torch.zeros(3))
    assert by_attention.tolist() == [int(balance * k + 1e-6) for k in seen.keep_counts(at)]


def test_rebalancing_by_hand():
    """N = 8, k = 4, over = 1.5: 1, 4, 5 are of the top four; 3 is early among the candidates, 6 gives way to it."""
    scores = torch.tensor([0.1, 0.9, 0.2, 0.3, 0.8, 0.7, 0.6, 0.5])
    pruner, seen, at = BTP(**SETTINGS), tokens(8), stage(balance=1.0)
    said = pruner.explain(seen, {Signal("attention", "llm.layer.1", "last", "logits"): scores.view(1, 1, 1, 8)}, at)
    assert said["attention"][0].nonzero().flatten().tolist() == [1, 4, 5]
    assert said["rebalancing"][0].nonzero().flatten().tolist() == [3]
    wider = BTP(**SETTINGS | {"over": 2.0})
    said = wider.explain(seen, {Signal("attention", "llm.layer.1", "last", "logits"): scores.view(1, 1, 1, 8)}, at)
    assert said["attention"][0].nonzero().flatten().tolist() == [1]
    assert said["rebalancing"][0].nonzero().flatten().tolist() == [0, 2, 3]
    line = said["candidates"][0].argsort(descending=True).tolist()
    assert line == [1, 3, 2, 0, 4, 5, 6, 7]
    assert torch.equal(said["attention score"][0], scores)


def test_scores_of_btp_are_what_its_rules_go_by():
    """Candidates are as many as asked and hold all that attention took; diversity took the farthest."""
    pruner, seen, at = BTP(**SETTINGS), tokens(32, 20), stage(keep=0.5, balance=0.4)
    rules, scores, kept = told(pruner, seen, at)
    assert rules["diversity"].any(1).all()
    in_line = scores["candidates"].isfinite()
    assert in_line.sum(1).tolist() == [int(1.5 * int(0.4 * k + 1e-6) + 1e-6) for k in (16, 10)]
    assert (in_line | ~(rules["attention"] | rules["rebalancing"])).all()
    for b in range(2):
        picked = scores["distance"][b][rules["diversity"][b]]
        left = scores["distance"][b][seen.valid[b] & ~kept[b]]
        assert picked.min() >= left.max()
        assert (scores["distance"][b][rules["spatial seed"][b]] == -torch.inf).all()


@pytest.mark.parametrize("name", NAMES)
def test_every_method_has_an_account(name):
    """The witness decides as the method does, and has scores of all that rank by one."""
    pruner = build(name)
    if pruner is None:
        return
    for at in kept_stages(name):
        seen = tokens(16, 11)
        values = signals(pruner, seen, at)
        if hasattr(pruner, "set_targets"):
            pruner.set_targets([[0, (0.0, 0.0, 0.5, 0.3)], []])
        witness = Witness(pruner)
        keep = witness.select(seen, values, at).keep
        assert torch.equal(keep, pruner.select(seen, values, at).keep)
        (account,) = witness.accounts
        assert torch.equal(account.kept, marked(keep, 16))
        if isinstance(pruner, ScorePruner):
            assert list(account.scores) == ["score"]
            assert torch.equal(top_k(account.scores["score"], seen.keep_counts(at), seen.valid), keep)


def test_a_composition_passes_on():
    parts = {"first": Diversity(), "second": Attention(score="logits", source="last")}
    pruner, seen, at = Chain(parts=parts), tokens(8), stage(by="second")
    assert list(told(pruner, seen, at)[1]) == ["score"]
    assert told(pruner, seen, stage(by="first"))[1] == {}


class Odd(Diversity):
    """Tells what is given to it."""

    def __init__(self, said):
        self.said = said

    def explain(self, tokens, signals, stage):
        return self.said


def test_what_is_told_must_be_true():
    seen, at = tokens(8), stage()
    with pytest.raises(ValueError, match=r"explain\(\) of pruner 'odd' names rules at llm.layer.2 that do not add up"):
        Witness(Odd({"all of them": torch.ones(1, 8, dtype=torch.bool)})).select(
            seen, signals(Diversity(), seen, at), at
        )


@pytest.mark.parametrize("value", [torch.zeros(1, 7), torch.zeros(1, 8, dtype=torch.long)])
def test_what_is_told_must_have_a_form(value):
    seen, at = tokens(8), stage()
    with pytest.raises(
        ValueError, match=r"gives 'rank' as torch.* Return floating scores or bool rules of shape \(1, 8\)"
    ):
        Witness(Odd({"rank": value})).select(seen, signals(Diversity(), seen, at), at)
