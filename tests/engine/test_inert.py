"""Attached and nothing pruned: not a bit changes."""

import pytest
import tiny
import torch
from oracle import steps
from toys import Watch, plan

from btp.core.signals import Signal
from btp.engine.attach import attach
from btp.engine.observe import observe

ROWS = [[2, (2, 3), 5], [1, "i", 1, (1, 2), 2], [3]]
SIGNALS = (
    Signal("attention", "llm.layer.0", "last"),
    Signal("attention", "llm.layer.0", "text", "logits"),
    Signal("keys", "llm.layer.0"),
    Signal("update", "llm.layer.0"),
    Signal("hidden", "llm.layer.1", "text"),
    Signal("hidden", "llm.input", "start"),
    Signal("attention", "llm.layer.0", "mean"),
    Signal("queries", "llm.layer.0", "all"),
    Signal("values", "llm.layer.0", "text"),
    Signal("rotary", "llm.layer.0"),
    Signal("update", "llm.layer.0", None, "mlp"),
    Signal("change", "llm.layer.0", "all", "attention"),
    Signal("change", "llm.layer.0", None, "layer"),
)
AHEAD = [
    [Signal("preview", f"llm.layer.{i}", rows, form) for rows, form in (("last", "probs"), ("text", "logits"))]
    for i in range(4)
]


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_keeping_everything_changes_nothing(family, attention, cache):
    """Hooks and probes attached, keep 1.0 at every stage: tokens and logits are bit-identical."""
    lvlm = tiny.shared(family, attention)
    inputs = tiny.prompts(lvlm, ROWS)
    tokens, logits = steps(lvlm, inputs, use_cache=cache)

    class All(Watch):
        def needs(self, stage):
            return (*SIGNALS, *AHEAD[stage.site.layer])

    pruner = All()
    with attach(lvlm, pruner, plan(("llm.layer.1", 1.0), ("llm.layer.3", 1.0))) as trace:
        same_tokens, same_logits = steps(lvlm, inputs, use_cache=cache)
    assert torch.equal(logits, same_logits)
    assert torch.equal(tokens, same_tokens)
    assert trace.fired == {"llm.layer.1": False, "llm.layer.3": False}
    assert pruner.seen, "the control must exercise the pruner"


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", tiny.TOWERS)
def test_keeping_every_patch_changes_nothing(family, attention, cache):
    """Stages and signals everywhere in the tower: tokens and logits are bit-identical."""
    lvlm = tiny.shared(family, attention)
    inputs = tiny.prompts(lvlm, ROWS)
    tokens, logits = steps(lvlm, inputs, use_cache=cache)
    at_output = [Signal("pixels", "vision.output"), Signal("hidden", "vision.output"), Signal("keys", "vision.layer.0")]
    at_output += [Signal("queries", "vision.feature", "all"), Signal("attention", "vision.feature", "mean")]
    if lvlm.towers["vision"].class_tokens:
        at_output += [Signal("attention", "vision.feature", "cls"), Signal("hidden", "vision.layer.1", "cls")]

    class Everywhere(Watch):
        proportional_attention = True

        def needs(self, stage):
            if stage.site.kind == "mlp":
                return (Signal("keys", f"vision.layer.{stage.site.layer}"),)
            return at_output if stage.site.kind in ("output", "input") else ()

    pruner = Everywhere()
    sites = "vision.layer.0", "vision.mlp.0", "vision.layer.1", "vision.mlp.1", "vision.output", "llm.input"
    with attach(lvlm, pruner, plan(*((site, 1.0) for site in sites), positions="renumber")) as trace:
        same_tokens, same_logits = steps(lvlm, inputs, use_cache=cache)
    assert torch.equal(logits, same_logits)
    assert torch.equal(tokens, same_tokens)
    assert trace.fired == dict.fromkeys(sites, False)
    assert len({str(stage.site) for stage, _, _ in pruner.seen}) == 6, "the control must exercise the pruner"
    assert trace[0].projected == (9,) * 3


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_nothing_scheduled(family):
    """The baseline takes the same path and records an unpruned run."""
    lvlm = tiny.shared(family)
    inputs = tiny.prompts(lvlm, ROWS)
    _, logits = steps(lvlm, inputs)
    with attach(lvlm) as trace:
        _, same = steps(lvlm, inputs)
    assert torch.equal(logits, same)
    call = trace.last
    assert trace.method == "none"
    assert call.slots == [inputs["input_ids"].shape[1]] * 4
    assert call.tokens_avg == call.total
    assert call.decode_steps == 2


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_observing_changes_nothing(family):
    """Watching every kind of signal in every layer leaves the outputs bit-identical."""
    lvlm = tiny.shared(family)
    inputs = tiny.prompts(lvlm, ROWS)
    _, logits = steps(lvlm, inputs)
    kinds = ("hidden", "queries", "keys", "values", "update", "change", "rotary")
    signals = [Signal(kind, f"llm.layer.{i}") for kind in kinds for i in range(4)]
    signals += [Signal("attention", f"llm.layer.{i}", "mean") for i in range(4)]
    with observe(lvlm, signals) as looks:
        _, same = steps(lvlm, inputs)
    assert torch.equal(logits, same)
    assert len(looks) == 1
    assert set(looks[0].signals) == set(signals)
