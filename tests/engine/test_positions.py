"""Positions behind several stages that close gaps, or leave them."""

import pytest
import tiny
import torch
from byhand import answer, cuts, project
from oracle import alone, blinding, hiding, steps, unseen, withdrawn
from toys import Content, plan

from btp.core.schedule import Schedule
from btp.engine.attach import attach

EACH = tiny.SIDE**2
BATCH = [[2, "i", 5], [1, "i", 1, "i", 2], [4], ["i", 1]]


def mixed(*stages):
    """A schedule of (site, keep, whether positions close up)."""
    return Schedule(tuple(s for site, keep, close in stages for s in plan((site, keep), positions=words(close))))


def words(close):
    return "renumber" if close else "original"


SCHEDULES = {
    "closed, then left": mixed(("vision.output", 6, True), ("llm.layer.2", 3, False)),
    "left, then closed": mixed(("llm.input", 6, False), ("llm.layer.2", 3, True)),
    "closed, left, closed": mixed(("llm.input", 7, True), ("llm.layer.1", 5, False), ("llm.layer.3", 2, True)),
    "closed and left in front of layer 0": mixed(("llm.input", 6, True), ("llm.layer.0", 4, False)),
    "left in the tower, closed in front of layer 0": mixed(("vision.output", 6, False), ("llm.input", 4, True)),
    "closed in the tower, left in front of layer 0": mixed(("vision.output", 6, True), ("llm.input", 4, False)),
    "closed where nothing is cut": mixed(("llm.input", 0.5, False), ("llm.layer.2", 0.49999999, True)),
    "closed behind none": mixed(("llm.layer.1", 4, False), ("llm.layer.2", 0, True)),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_by_hand(attention, schedule):
    """Prefill and decode equal the plain decoder at positions that were closed and left by hand."""
    lvlm, stages = tiny.shared("llava", attention), SCHEDULES[schedule]
    inputs = tiny.prompts(lvlm, BATCH)
    with attach(lvlm, Content(), stages) as trace:
        tokens, logits = steps(lvlm, inputs)
    for b in range(len(BATCH)):
        row = alone(inputs, b, EACH)
        wanted = answer(lvlm, row["input_ids"], project(lvlm, row), cuts(trace[0], b, stages), tokens[b, -3:])
        assert torch.equal(tokens[b, -3:], wanted.argmax(1))
        assert (logits[:, b] - wanted).abs().max() < 2e-6 * max(1, wanted.abs().max())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_against_hiding(schedule):
    """The same held against hidden tokens whose lowered positions are counted from scratch."""
    lvlm, stages = tiny.shared("llava_qwen"), SCHEDULES[schedule]
    inputs = tiny.prompts(lvlm, BATCH)
    with attach(lvlm, Content(), stages) as trace:
        tokens, logits = steps(lvlm, inputs)
    gone = withdrawn(inputs, lvlm.visual_mask(inputs), trace[0])
    with hiding(lvlm, inputs, gone, [stage.positions == "renumber" for stage in stages]):
        hid_tokens, hid_logits = steps(lvlm, inputs)
    assert torch.equal(tokens, hid_tokens)
    assert (logits - hid_logits).abs().max() < 1e-6 * max(1, hid_logits.abs().max())


@pytest.mark.parametrize("closes", [True, False])
def test_in_the_tower(closes):
    """Stages of the tower agree on the positions in the prompt; an original one in the decoder keeps those."""
    lvlm = tiny.shared("llava_deep")
    stages = mixed(
        ("vision.mlp.0", 7, closes),
        ("vision.output", 5, closes),
        ("llm.layer.1", 4, not closes),
        ("llm.layer.2", 2, False),
    )
    inputs = tiny.prompts(lvlm, BATCH)
    with attach(lvlm, Content(), stages) as trace:
        tokens, logits = steps(lvlm, inputs)
    visual, call = lvlm.visual_mask(inputs), trace[0]
    gone = hiding(lvlm, inputs, withdrawn(inputs, visual, call), [stage.positions == "renumber" for stage in stages])
    with blinding(lvlm, unseen(visual, call, EACH)), gone:
        hid_tokens, hid_logits = steps(lvlm, inputs)
    assert torch.equal(tokens, hid_tokens)
    assert (logits - hid_logits).abs().max() < 1e-6 * max(1, hid_logits.abs().max())


@pytest.mark.parametrize("first", [True, False])
def test_stages_of_the_tower_agree(first):
    """What left in the tower leaves the prompt in one go, so its stages cannot differ in positions."""
    stages = mixed(("vision.layer.1", 7, first), ("vision.output", 5, not first))
    refused = attach(tiny.shared("llava"), Content(), stages)
    with pytest.raises(ValueError, match=rf"schedule\.1\.positions is {words(not first)}"), refused:
        pass
