"""Composed methods: every stage goes to its part, which decides as if it were alone."""

import pytest
import tiny
import torch
from hand import signals, stage, tokens

from btp.core.pruner import Pruner
from btp.core.schedule import Schedule, Stage
from btp.core.selection import Selection
from btp.core.signals import Signal
from btp.engine.attach import attach
from btp.pruners.attention import Attention
from btp.pruners.btp import BTP
from btp.pruners.composition import Chain
from btp.pruners.diversity import Diversity
from btp.pruners.oracle import Oracle
from btp.pruners.random import Random
from btp.pruners.tome import ToMe

METHOD = {"score": "logits", "source": "last", "over": 1.5, "split": "half", "seed": 0.25, "distance": "manhattan"}


def lots():
    return Random(seed=0, salt="none")


def looks():
    return Attention(score="probs", source="last")


def chain(**parts):
    return Chain(parts=parts)


def plan(*stages):
    return Schedule(tuple(Stage(site, keep, settings=settings) for site, keep, settings in stages))


def test_a_part_decides_as_if_it_were_alone():
    """It gets the tokens, its signals and the stage, without the name that only the composition reads."""
    both = chain(lots=lots(), look=looks(), btp=BTP(**METHOD))
    seen = tokens(16, 11)
    for name, alone, settings in (
        ("lots", lots(), {}),
        ("look", looks(), {}),
        ("btp", BTP(**METHOD), {"balance": 0.6}),
    ):
        at, bare = stage(by=name, **settings), stage(**settings)
        assert both.needs(at) == alone.needs(bare)
        values = signals(alone, seen, bare)
        assert torch.equal(both.select(seen, values, at).keep, alone.select(seen, values, bare).keep)


@pytest.mark.parametrize("site", ["vision.output", "llm.input", "llm.layer.1"])
def test_two_of_the_same_are_one(site):
    """A model pruned by two parts of one kind computes what the method alone computes at both stages."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, [[2, "i", 4], [1, "i", 2]])
    stages = ((site, 0.6), ("llm.layer.2", 0.3))
    with torch.inference_mode():
        with attach(lvlm, lots(), plan(*((s, k, {}) for s, k in stages))) as alone:
            one = lvlm(**inputs).logits
        owned = [(s, k, {"by": by}) for (s, k), by in zip(stages, "ab", strict=True)]
        with attach(lvlm, chain(a=lots(), b=lots()), plan(*owned)) as both:
            two = lvlm(**inputs).logits
    assert torch.equal(one, two)
    assert both.tokens_avg == alone.tokens_avg
    assert [s.kept for s in both.last.stages] == [s.kept for s in alone.last.stages]


def test_different_parts_in_one_prefill():
    """Merging in the tower, attention between layers, everything withdrawn at the end: each stage leaves its count."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, [[2, "i", 4], [1, "i", 2]])
    both = chain(tome=ToMe(class_token=True, order="raster", proportional_attention=True), look=looks())
    stages = [("vision.mlp.0", 6, {"by": "tome"}), ("llm.layer.1", 3, {"by": "look"}), ("llm.layer.3", 0, {})]
    with torch.inference_mode(), attach(lvlm, both, plan(*stages)) as trace:
        lvlm(**inputs)
    assert trace.method == "tome+attention"
    assert trace.tokens_avg == [(6 + 3 + 3 + 0) / 4] * 2
    assert both.proportional_attention
    assert not chain(a=lots(), b=looks()).proportional_attention


class Own(Pruner):
    """Decides its own counts."""

    def __init__(self, adaptive):
        self.adaptive = adaptive

    def select(self, tokens, signals, stage):
        return Selection(torch.zeros(len(tokens.valid), 1, dtype=torch.long), counts=(1,) * len(tokens.valid))


def test_only_adaptive_parts_decide_their_counts():
    """One adaptive part makes the composition adaptive, and the others are still held to their stages."""
    assert chain(a=Own(True), b=lots()).adaptive
    assert not chain(a=lots(), b=looks()).adaptive
    both = chain(a=Own(True), b=Own(False))
    seen = tokens(4, 3)
    assert both.select(seen, signals(lots(), seen, stage()), stage(by="a")).counts == (1, 1)
    with pytest.raises(ValueError, match=r"returned counts at llm\.layer\.2, but it is not adaptive"):
        both.select(seen, signals(lots(), seen, stage()), stage(by="b"))


def test_targets_reach_the_part_that_wants_them():
    """The others are not told."""
    oracle = Oracle(inner=Diversity())
    chain(a=lots(), b=oracle).set_targets([[0, 3], []])
    assert oracle.targets == [[0, 3], []]


def test_a_part_may_look_into_the_tower():
    """Its signals are those of its own stage."""

    class Sees(Own):
        def needs(self, stage):
            return (Signal("attention", "vision.feature", "cls"),)

    both = chain(a=Sees(True), b=looks())
    assert both.needs(stage("vision.output", by="a"))[0].site.tower == "vision"
    assert both.needs(stage(by="b"))[0].site.tower == "llm"
    assert both.needs(stage(keep=0)) == ()


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([("vision.output", 0.5, {})], r"schedule\.0\.by is None.*choose from lots, btp"),
        ([("vision.output", 0.5, {"by": "me"})], r"schedule\.0\.by is 'me'"),
        (
            [("vision.output", 0.5, {"by": "lots"}), ("llm.layer.2", 0.2, {"by": "btp"})],
            r"schedule\.1\.balance is missing",
        ),
        (
            [("vision.output", 0.5, {"by": "lots", "balance": 1.0}), ("llm.layer.2", 0.2, {"by": "btp", "balance": 1})],
            r"schedule\.0\.balance is set, but pruner 'random' has no such setting",
        ),
    ],
)
def test_errors_count_the_stages_of_the_whole(stages, message):
    """A part's complaint names the stage as the run's schedule has it."""
    with pytest.raises(ValueError, match=message):
        chain(lots=lots(), btp=BTP(**METHOD)).check(plan(*stages))


@pytest.mark.parametrize("parts", [{}, {"a": Diversity()}, {"a": Diversity(), "b": None}])
def test_parts_that_are_none(parts):
    """Two methods or more, each a pruner."""
    with pytest.raises(ValueError, match=r"pruner\.method\.parts"):
        Chain(parts=parts)
