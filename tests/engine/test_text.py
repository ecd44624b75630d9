"""Text models under the engine: all of a prompt but its last token may leave, and removing equals hiding."""

import pytest
import tiny
import tiny_text
import torch
from crossings import one_by_one
from oracle import alone, hiding, steps, withdrawn
from toys import Scatter, plan

from btp.core.schedule import Schedule, Stage
from btp.core.signals import Signal
from btp.engine.attach import attach
from btp.engine.observe import observe
from btp.pruners.attention import Attention
from btp.pruners.btp import BTP
from btp.pruners.diversity import Diversity
from btp.pruners.fastervlm import FasterVLM
from btp.pruners.fastv import FastV
from btp.pruners.lattice import Lattice
from btp.pruners.random import Random

LENGTHS = {"one row": [11], "left padded": [9, 14, 5], "equal rows": [8, 8]}
SCHEDULES = {
    "input": plan(("llm.input", 3)),
    "two stages": plan(("llm.layer.1", 5), ("llm.layer.3", 2)),
    "three stages to none": plan(("llm.input", 0.8), ("llm.layer.1", 0.4), ("llm.layer.2", 0)),
}
METHODS = {
    "random": Random(seed=0, salt="content"),
    "diversity": Diversity(),
    "attention": Attention(score="probs", source="last"),
    "fastv": FastV(score="probs", query="last", seed=0),
}


@pytest.mark.parametrize(
    ("attention", "rows", "schedule"),
    one_by_one(["sdpa", "eager"], ["left padded", *LENGTHS], ["three stages to none", *SCHEDULES]),
)
@pytest.mark.parametrize("family", tiny_text.FAMILIES)
def test_removing_equals_hiding(family, attention, rows, schedule):
    """In prefill and in every decode step, with grouped heads and without, with RoPE and learned positions."""
    host, inputs = tiny_text.shared(family, attention), tiny_text.prompts(LENGTHS[rows])
    with attach(host, Scatter(), SCHEDULES[schedule]) as trace:
        tokens, logits = steps(host, inputs)
    with hiding(host, inputs, withdrawn(inputs, host.layout(inputs).visual, trace[0])):
        hidden_tokens, hidden_logits = steps(host, inputs)
    plain = steps(host, inputs)[1]
    scale = max(1, hidden_logits.abs().max())
    assert (logits - hidden_logits).abs().max() < 2e-6 * scale
    assert torch.equal(tokens, hidden_tokens)
    assert (logits - plain).abs().max() > 1e-3, "nothing was withdrawn, so nothing was proved"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", tiny_text.FAMILIES)
def test_keeping_everything_changes_nothing(family, attention):
    """Bit-identical, hooks and probe attached."""
    host, inputs = tiny_text.shared(family, attention), tiny_text.prompts([9, 14])
    plain = steps(host, inputs)
    with attach(host, METHODS["attention"], plan(("llm.layer.1", 1.0), ("llm.layer.2", 1.0))) as trace:
        kept = steps(host, inputs)
    assert all(torch.equal(a, b) for a, b in zip(plain, kept, strict=True))
    assert trace[0].total == (8, 13)
    assert trace[0].text == (1, 1)  # the last token


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_row_keeps_the_same_alone_and_in_a_batch(family, method):
    """Methods that need no picture run as they are; padding has no say."""
    host, inputs = tiny_text.shared(family), tiny_text.prompts([9, 14, 6])
    schedule = plan(("llm.layer.2", 0.5))
    with attach(host, METHODS[method], schedule) as trace:
        tokens, logits = steps(host, inputs)
    for b in range(3):
        with attach(host, METHODS[method], schedule) as single:
            its_tokens, its_logits = steps(host, alone(inputs, b, 1))
        assert single[0].stages[0].kept[0] == trace[0].stages[0].kept[b]
        assert len(single[0].stages[0].kept[0]) == int((8, 13, 5)[b] * 0.5)
        assert torch.equal(its_tokens[0, -3:], tokens[b, -3:])
        assert torch.allclose(its_logits[:, 0], logits[:, b], atol=1e-5)


def test_the_last_token_is_no_candidate():
    """On either side of the padding, and without a mask."""
    host = tiny_text.shared("llama")
    for padding, expected in (("left", [[1, 2, 3], [0, 1, 2, 3, 4][1:4]]), ("right", [[0, 1, 2], [0, 1]])):
        inputs = tiny_text.prompts([4, 3] if padding == "right" else [4, 4], padding)
        visual = host.layout(inputs).visual
        assert not visual[:, -1].any()
        if padding == "right":
            assert [row.nonzero().flatten().tolist() for row in visual] == expected
    bare = host.layout({"input_ids": torch.zeros(2, 5, dtype=torch.long)})
    assert bare.visual.sum(1).tolist() == [4, 4]
    assert (bare.coord == -1).all()
    assert host.layout({"inputs_embeds": torch.zeros(1, 3, 32)}).visual.sum() == 2
    with pytest.raises(ValueError, match="neither input_ids nor inputs_embeds"):
        host.layout({})


def test_signals_of_a_text_are_seen():
    """Attention of the last token over all others, normalised over itself too."""
    host, inputs = tiny_text.shared("qwen2"), tiny_text.prompts([7, 5])
    asked = Signal("attention", "llm.layer.1", "last")
    with torch.no_grad(), observe(host, [asked]) as looks:
        host(**inputs)
    seen = looks[0].signals[asked]
    assert seen.shape == (2, 4, 1, 6)
    assert (seen[0].sum(-1) < 1).all()
    eager = tiny_text.shared("qwen2", "eager")
    with torch.no_grad():
        whole = eager.model(**inputs, output_attentions=True).attentions[1]
    assert torch.allclose(seen[0, :, 0], whole[0, :, -1, :6], atol=1e-6)


@pytest.mark.parametrize(
    ("pruner", "settings", "message"),
    [
        (Lattice(), {}, "pruner 'lattice' goes by where tokens lie in a picture at schedule.0 .* has no picture: its "),
        (
            BTP(score="probs", source="last", over=1.5, split="half", seed=0.25, distance="manhattan"),
            {"balance": 0.5},
            "pruner 'btp' goes by where tokens lie in a picture",
        ),
        (Attention(score="probs", source="mean"), {}, "asks for attention .*the text beside a picture"),
    ],
    ids=["lattice", "btp", "text rows"],
)
def test_methods_that_go_by_a_picture_are_refused(pruner, settings, message):
    host = tiny_text.shared("llama")
    schedule = Schedule((Stage("llm.layer.2", keep=0.5, settings=settings),))
    with pytest.raises(ValueError, match=message), attach(host, pruner, schedule):
        pass


def test_btp_without_its_grid_is_not():
    """Only the seed needs a grid."""
    method = BTP(score="probs", source="last", over=1.5, split="half", seed=0.0, distance="manhattan")
    host, inputs = tiny_text.shared("llama"), tiny_text.prompts([9, 12])
    with attach(host, method, Schedule((Stage("llm.layer.2", keep=0.5, settings={"balance": 0.5}),))) as trace:
        steps(host, inputs)
    assert trace[0].stages[0].after == (4, 5)


def test_signals_of_a_vision_tower_are_refused():
    host = tiny_text.shared("llama")
    method = FasterVLM(heads="mean", score="cls")
    with (
        pytest.raises(ValueError, match=r"works in the vision tower, but LlamaForCausalLM has none: all of its prompt"),
        attach(host, method, plan(("vision.output", 0.5))),
    ):
        pass


def test_learned_positions_cannot_be_renumbered():
    host = tiny_text.shared("opt")
    with (
        pytest.raises(ValueError, match=r"schedule.0.positions is renumber, but OPTDecoder adds positions to its emb"),
        attach(host, Scatter(), plan(("llm.layer.2", 0.5), positions="renumber")),
    ):
        pass
    assert tiny.PAD == 0
