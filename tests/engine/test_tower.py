"""Cuts in the vision tower and in front of the projector: removing equals hiding there too."""

import pytest
import tiny
import torch
from oracle import alone, blinding, hiding, steps, unseen, withdrawn
from toys import Content, plan

from btp.engine.attach import attach

EACH = tiny.SIDE**2
BATCH = [[2, "i", 5], [1, "i", 1, "i", 2], [4], ["i", 1]]
SCHEDULES = {
    "layer 0": plan(("vision.layer.0", 5)),
    "layer 1": plan(("vision.layer.1", 4)),
    "mlp 0": plan(("vision.mlp.0", 4)),
    "mlp of the last layer": plan(("vision.mlp.1", 3)),
    "output": plan(("vision.output", 3)),
    "tower and decoder": plan(("vision.layer.1", 7), ("vision.output", 5), ("llm.layer.2", 2)),
    "every kind of site": plan(
        ("vision.layer.0", 8),
        ("vision.mlp.0", 7),
        ("vision.layer.1", 6),
        ("vision.mlp.1", 5),
        ("vision.output", 4),
        ("llm.input", 3),
        ("llm.layer.1", 2),
        ("llm.layer.3", 0),
    ),
    "none in the tower": plan(("vision.mlp.0", 6), ("vision.layer.1", 0)),
    "none at the output": plan(("vision.layer.1", 6), ("vision.output", 0)),
}


def hidden(lvlm, inputs, trace, renumber, run):
    """What `run` says where the model hides all that a trace says was withdrawn."""
    visual, call = lvlm.visual_mask(inputs), trace[0]
    with blinding(lvlm, unseen(visual, call, EACH)), hiding(lvlm, inputs, withdrawn(inputs, visual, call), renumber):
        return run()


def compare(lvlm, inputs, schedule, renumber=False, bound=1e-6, **more):
    """Prune, then hide; tokens and logits of every step must agree."""
    with attach(lvlm, Content(), schedule) as trace:
        tokens, logits = steps(lvlm, inputs, **more)
    hid_tokens, hid_logits = hidden(lvlm, inputs, trace, renumber, lambda: steps(lvlm, inputs, **more))
    plain = steps(lvlm, inputs, **more)[1]
    scale = hid_logits.abs().max()
    assert (logits - hid_logits).abs().max() < bound * max(1, scale)
    assert torch.equal(tokens, hid_tokens)
    assert (logits - plain).abs().max() / scale > 1e-3, "nothing was withdrawn, so nothing was proved"
    return trace


CASES = [(f, s) for f in tiny.TOWERS for s in SCHEDULES if (f, s) != ("llava_siglip", "none in the tower")]  # refused


@pytest.mark.parametrize(("family", "schedule"), CASES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_removing_equals_hiding(family, attention, schedule):
    """Patches cut at any site of the tower, for unequal rows padded on the left, several pictures and none."""
    lvlm = tiny.shared(family, attention)
    trace = compare(lvlm, tiny.prompts(lvlm, BATCH), SCHEDULES[schedule])
    assert [str(s.site) for s in trace[0].stages] == [str(s.site) for s in SCHEDULES[schedule]]
    first = trace[0].stages[0]
    sets = {tuple(i % EACH for i in kept) for kept in (first.kept[0], first.kept[3])}
    assert len(sets) == 2, "each picture should lose other patches, or mixing them up would not show"


@pytest.mark.parametrize("family", tiny.TOWERS)
def test_in_float64(family):
    """In double precision the two agree to the last digits."""
    lvlm = tiny.shared(family, "sdpa", torch.float64)
    compare(lvlm, tiny.prompts(lvlm, BATCH), SCHEDULES["every kind of site"], bound=1e-12)


@pytest.mark.parametrize("schedule", ["mlp 0", "output", "tower and decoder"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llava_deep", "llava_siglip"])
def test_renumbering(family, attention, schedule):
    """Closing the gaps lowers each position by the patches withdrawn in front of it."""
    lvlm = tiny.shared(family, attention)
    stages = plan(*((s.site, s.keep) for s in SCHEDULES[schedule]), positions="renumber")
    compare(lvlm, tiny.prompts(lvlm, BATCH), stages, renumber=True)


@pytest.mark.parametrize("family", tiny.TOWERS)
def test_without_a_cache(family):
    """use_cache=False prefills anew at every step; the pictures were encoded once."""
    lvlm = tiny.shared(family)
    inputs = tiny.prompts(lvlm, BATCH)
    trace = compare(lvlm, inputs, SCHEDULES["tower and decoder"], use_cache=False)
    assert len(trace) == 3
    assert all(a.kept == b.kept for a, b in zip(trace[0].stages, trace[2].stages, strict=True))


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_plain_call(padding, attention):
    """A plain call encodes the pictures inside forward; rows end with the last token, or with their padding."""
    lvlm = tiny.shared("llava_deep", attention)
    inputs = tiny.prompts(lvlm, [[2, "i", 5], [1, "i", 1, "i", 3]], padding=padding)
    with torch.no_grad(), attach(lvlm, Content(), SCHEDULES["tower and decoder"]) as trace:
        cut = lvlm(**inputs).logits
    with torch.no_grad():
        hid = hidden(lvlm, inputs, trace, False, lambda: lvlm(**inputs).logits)
    for b, text in enumerate((5, 3)):
        behind = 0 if padding == "left" else int((inputs["attention_mask"][b] == 0).sum())
        a, h = (x[b, x.shape[1] - behind - text : x.shape[1] - behind] for x in (cut, hid))
        assert torch.allclose(a, h, atol=1e-5)


@pytest.mark.parametrize("schedule", ["layer 1", "tower and decoder", "every kind of site"])
def test_beams(schedule):
    """A beam repeats its prompt's pictures; beam search equals beam search over the hidden prompt."""
    lvlm = tiny.shared("llava_deep")
    inputs = tiny.prompts(lvlm, [[2, "i", 5], [1, "i", 1, "i", 2], [3]])
    more = {"num_beams": 3, "max_new_tokens": 4, "do_sample": False}
    with torch.no_grad(), attach(lvlm, Content(), SCHEDULES[schedule]) as trace:
        cut = lvlm.generate(**inputs, **more)
    wide = {key: inputs[key].repeat_interleave(3, dim=0) for key in ("attention_mask", "input_ids")}
    visual, call = lvlm.visual_mask(wide), trace[0]
    gone = hiding(lvlm, wide, withdrawn(wide, visual, call))
    with torch.no_grad(), blinding(lvlm, unseen(visual, call, EACH, beams=3)), gone:
        hid = lvlm.generate(**inputs, **more)
    assert call.total == (9,) * 3 + (18,) * 3 + (0,) * 3
    assert torch.equal(cut, hid)


def test_several_answers():
    """Answers that are sampled side by side share their pictures."""
    lvlm = tiny.shared("llava_deep")
    inputs = tiny.prompts(lvlm, [[2, "i", 5], [1, "i", 1, "i", 2]])
    more = {"do_sample": True, "temperature": 2.0, "num_return_sequences": 2, "max_new_tokens": 5}
    with torch.no_grad(), attach(lvlm, Content(), SCHEDULES["tower and decoder"]) as trace:
        torch.manual_seed(7)
        cut = lvlm.generate(**inputs, **more)
    wide = {key: inputs[key].repeat_interleave(2, dim=0) for key in ("attention_mask", "input_ids")}
    visual, call = lvlm.visual_mask(wide), trace[0]
    gone = hiding(lvlm, wide, withdrawn(wide, visual, call))
    with torch.no_grad(), blinding(lvlm, unseen(visual, call, EACH, beams=2)), gone:
        torch.manual_seed(7)
        assert torch.equal(cut, lvlm.generate(**inputs, **more))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bfloat16(attention):
    """Half precision runs, and stays as near to hiding as its digits allow."""
    lvlm = tiny.shared("llava_deep", attention, torch.bfloat16)
    inputs = tiny.prompts(lvlm, BATCH)
    with attach(lvlm, Content(), SCHEDULES["every kind of site"]) as trace:
        _, cut = steps(lvlm, inputs, n=1)
    hid = hidden(lvlm, inputs, trace, False, lambda: steps(lvlm, inputs, n=1)[1])
    assert (cut - hid).abs().max() / hid.abs().max() < 0.05


def test_many_pictures():
    """More pictures in a prompt than patches in a picture."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, [["i", 1] * (EACH + 2), ["i", 2]])
    trace = compare(lvlm, inputs, SCHEDULES["tower and decoder"])
    assert trace[0].projected == (5,) * (EACH + 3)


def test_what_happened_is_recorded():
    """Counts of every vision layer, and of what the projector took; kept tokens are numbered in the prompt."""
    lvlm = tiny.shared("llava_deep")
    inputs = tiny.prompts(lvlm, BATCH)
    with attach(lvlm, Content(), SCHEDULES["every kind of site"]) as trace:
        steps(lvlm, inputs)
    call = trace[0]
    assert call.vision == [(9, 8), (7, 6), (6, 6)]  # a class token each; the last layer is not read
    assert call.projected == (4,) * 4
    assert call.visual == [(3, 3, 0, 3), (2, 2, 0, 2), (2, 2, 0, 2), (0, 0, 0, 0)]
    assert [s.before for s in call.stages] == [(9, 18, 0, 9), (8, 16, 0, 8), (7, 14, 0, 7), (6, 12, 0, 6)] + [
        (5, 10, 0, 5),
        (4, 8, 0, 4),
        (3, 3, 0, 3),
        (2, 2, 0, 2),
    ]
    for earlier, later in zip(call.stages, call.stages[1:], strict=False):
        assert all(set(b) <= set(a) for a, b in zip(earlier.kept, later.kept, strict=True))
    assert trace.fired == {str(s.site): True for s in SCHEDULES["every kind of site"]}


def test_a_batch_without_pictures():
    """Nothing to do in the tower, before and behind prompts with pictures."""
    lvlm = tiny.shared("llava_deep")
    schedule = SCHEDULES["tower and decoder"]
    text, pictures = tiny.prompts(lvlm, [[4], [6]]), tiny.prompts(lvlm, BATCH)
    plain, call = steps(lvlm, text)[1], lvlm(**text).logits
    with attach(lvlm, Content(), schedule) as trace:
        assert torch.equal(steps(lvlm, text)[1], plain)
        steps(lvlm, pictures)
        assert torch.equal(steps(lvlm, text)[1], plain)
        assert torch.equal(lvlm(**text).logits, call)
    assert [any(call.fired.values()) for call in trace] == [False, True, False, False]
    assert trace[0].stages[0].kept == [[], []]


@pytest.mark.parametrize("family", tiny.TOWERS)
def test_a_row_alone(family):
    """Batching changes neither which patches stay nor what is answered."""
    lvlm = tiny.shared(family)
    together = tiny.prompts(lvlm, BATCH)
    schedule = SCHEDULES["tower and decoder"]
    with attach(lvlm, Content(), schedule) as batch:
        tokens, _ = steps(lvlm, together)
    for b in range(len(BATCH)):
        with attach(lvlm, Content(), schedule) as single:
            own, _ = steps(lvlm, alone(together, b, EACH))
        assert torch.equal(own[0, -3:], tokens[b, -3:])
        assert [s.kept[b] for s in batch[0].stages] == [s.kept[0] for s in single[0].stages]
        assert batch[0].tokens_avg[b] == single[0].tokens_avg[0]
