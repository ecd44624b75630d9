"""Every family, saved and loaded again: nothing pruned changes nothing, and removing equals hiding."""

from functools import cache

import pytest
import torch
from crossings import one_by_one
from oracle import steps, withdrawn
from toys import Content, Watch, plan

from btp.core.signals import Signal
from btp.engine.attach import attach
from families import kit
from families.hiding import hiding

NAMES = sorted(kit.families())
SCHEDULES = {
    "input": plan(("llm.input", 0.4)),
    "layer 0": plan(("llm.layer.0", 0.5)),
    "layer 1": plan(("llm.layer.1", 0.3)),
    "last layer": plan(("llm.layer.3", 0.2)),
    "three stages to none": plan(("llm.input", 0.8), ("llm.layer.1", 0.4), ("llm.layer.2", 0)),
    "none at the input": plan(("llm.input", 0)),
}
CASES = [(name, rows) for name in NAMES for rows in kit.rows(name)]
PADDED = "left padded, unequal pictures"
MANY = "three stages to none"
EAGER = ("llava15", "qwen25vl", "gemma3")  # the common mask, M-RoPE, pictures seen both ways


def crossings(*axes):
    """Both attentions, every kind of row and every value of other axes in each family; most under eager take long."""
    found = []
    for name in NAMES:
        for case in one_by_one(["sdpa", "eager"], [PADDED, *kit.rows(name)], *axes):
            late = case.values[0] == "eager" and name not in EAGER
            found.append(pytest.param(name, *case.values, marks=[*case.marks, *[pytest.mark.long] * late]))
    return found


@cache
def unpruned(name, rows, attention):
    """Tokens and logits of every step."""
    return steps(kit.loaded(name, attention).host, kit.batch(name, kit.rows(name)[rows]))


def clean(lvlm):
    """Hooks on all modules of a model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lvlm.model.modules())


@pytest.mark.parametrize("name", NAMES)
def test_reloading_gives_the_same_model(name):
    """The yaml's loading path finds the family, its adapter and its processor."""
    loaded = kit.loaded(name)
    weights = dict(type(loaded.host.model).from_pretrained(kit.checkpoint(name)).named_parameters())
    assert all(torch.equal(weight, weights[key]) for key, weight in loaded.host.model.named_parameters())
    assert loaded.processor.tokenizer.padding_side == "left"


@pytest.mark.parametrize(("name", "rows"), CASES)
def test_layout(name, rows):
    """Each picture's tokens on the grid have places of their own; text has none; pictures are numbered in order."""
    lvlm, inputs = kit.loaded(name).host, kit.batch(name, kit.rows(name)[rows])
    layout = lvlm.layout(inputs)
    assert torch.equal(layout.visual, lvlm.visual_mask(inputs))
    assert (layout.coord[~layout.visual] == -1).all()
    assert (layout.image[~layout.visual] == -1).all()
    for b, row in enumerate(kit.rows(name)[rows]):
        number = layout.image[b][layout.visual[b]]
        shown = [part for part in row if not isinstance(part, str)]
        assert sorted(set(number.tolist())) == list(range(len(shown)))
        assert torch.equal(number, number.sort().values)
        for i in range(len(shown)):
            coord = layout.coord[b][layout.visual[b] & (layout.image[b] == i)]
            placed = coord[(coord >= 0).all(1)].tolist()
            assert len(placed) == len(set(map(tuple, placed)))
            assert placed, "no token of the picture lies on a grid"


@pytest.mark.parametrize(("name", "attention", "rows"), crossings())
def test_keeping_everything_changes_nothing(name, attention, rows):
    """Hooks and probes attached, keep 1.0: tokens and logits are bit-identical."""
    lvlm = kit.loaded(name, attention).host
    inputs = kit.batch(name, kit.rows(name)[rows])
    tokens, logits = unpruned(name, rows, attention)
    seen = [Signal("attention", "llm.layer.0", "last"), Signal("keys", "llm.layer.0"), Signal("update", "llm.layer.0")]
    pruner = Watch(*seen)
    with attach(lvlm, pruner, plan(("llm.layer.1", 1.0), ("llm.layer.3", 1.0))):
        same_tokens, same_logits = steps(lvlm, inputs)
    assert torch.equal(logits, same_logits)
    assert torch.equal(tokens, same_tokens)
    assert pruner.seen


@pytest.mark.parametrize(("name", "attention", "rows", "schedule"), crossings([MANY, *SCHEDULES]))
def test_removing_equals_hiding(name, attention, rows, schedule):
    """In prefill and at every decode step, batched with left padding and unequal pictures."""
    lvlm = kit.loaded(name, attention).host
    inputs = kit.batch(name, kit.rows(name)[rows])
    with attach(lvlm, Content(), SCHEDULES[schedule]) as trace:
        tokens, logits = steps(lvlm, inputs)
    with hiding(lvlm, inputs, withdrawn(inputs, lvlm.visual_mask(inputs), trace[0])):
        hidden_tokens, hidden_logits = steps(lvlm, inputs)
    scale = hidden_logits.abs().max().clamp(min=1)
    assert (logits - hidden_logits).abs().max() / scale < 2e-6
    assert torch.equal(tokens, hidden_tokens)
    plain = unpruned(name, rows, attention)[1]
    assert (logits - plain).abs().max() / scale > 1e-4, "nothing was withdrawn, so nothing was proved"


@pytest.mark.parametrize("name", NAMES)
def test_a_row_keeps_the_same_alone_and_in_a_batch(name):
    """Batching changes neither which tokens stay nor what is answered."""
    lvlm, rows = kit.loaded(name).host, kit.rows(name)[PADDED]
    picked = [row for row in rows if len([p for p in row if not isinstance(p, str)]) == 1]
    picked = [*picked, *kit.rows(name)["one row"]]
    schedule = plan(("llm.input", 0.7), ("llm.layer.2", 0.3))
    together = kit.batch(name, picked)
    with attach(lvlm, Content(), schedule) as batch:
        tokens, _ = steps(lvlm, together)
    for b, row in enumerate(picked):
        alone = kit.batch(name, [row], first=b)
        with attach(lvlm, Content(), schedule) as single:
            own, _ = steps(lvlm, alone)
        assert torch.equal(own[0, -3:], tokens[b, -3:])
        assert [stage.kept[b] for stage in batch[0].stages] == [stage.kept[0] for stage in single[0].stages]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_stays_behind(name):
    """No hook outlives the block, also where it ends in an exception."""
    lvlm, inputs = kit.loaded(name).host, kit.batch(name, kit.rows(name)["one row"])
    before, (_, logits) = clean(lvlm), steps(lvlm, inputs)

    def fail(module, args, output):
        raise KeyError("ours")

    broken = lvlm.decoder.layers[2].register_forward_hook(fail)
    with pytest.raises(KeyError, match="ours"), attach(lvlm, Content(), SCHEDULES["layer 1"]):
        steps(lvlm, inputs)
    broken.remove()
    assert clean(lvlm) == before
    assert torch.equal(steps(lvlm, inputs)[1], logits)
