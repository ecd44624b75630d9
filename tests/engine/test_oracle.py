"""Removing equals hiding: the proof that pruning is correct."""

import pytest
import tiny
import torch
from crossings import one_by_one
from oracle import hiding, steps, withdrawn
from toys import Scatter, plan

from btp.engine.attach import attach

ROWS = {
    "one row": [[3, "i", 4]],
    "left padded, other image counts": [[2, (2, 3), 5], [1, "i", 1, (1, 2), 2]],
    "text only beside images": [[6], [2, "i", 3], ["i", 1]],
    "equal rows": [[2, "i", 3], [1, "i", 4]],
}
SCHEDULES = {
    "input": plan(("llm.input", 3)),
    "layer 0": plan(("llm.layer.0", 0.5)),
    "layer 1": plan(("llm.layer.1", 4)),
    "last layer": plan(("llm.layer.3", 1)),
    "two stages": plan(("llm.layer.1", 5), ("llm.layer.3", 2)),
    "three stages to none": plan(("llm.input", 0.8), ("llm.layer.1", 0.4), ("llm.layer.2", 0)),
    "none at the input": plan(("llm.input", 0)),
}
PADDED, MANY = "left padded, other image counts", "three stages to none"
FORMS = ("sdpa", "eager")
# eager attention takes its softmax in float32, whatever the model's dtype
TOLERANCE = {(torch.float32, "sdpa"): 1e-6, (torch.float32, "eager"): 1e-6, (torch.float64, "sdpa"): 1e-12}


def compare(lvlm, inputs, schedule, renumber=False, **more):
    """Prune, then hide what the trace says was withdrawn; tokens and logits of every step must agree."""
    with attach(lvlm, Scatter(), schedule) as trace:
        tokens, logits = steps(lvlm, inputs, **more)
    gone = withdrawn(inputs, lvlm.visual_mask(inputs), trace[0])
    with hiding(lvlm, inputs, gone, renumber):
        hidden_tokens, hidden_logits = steps(lvlm, inputs, **more)
    plain = steps(lvlm, inputs, **more)[1]
    scale = hidden_logits.abs().max()
    bound = TOLERANCE.get((lvlm.dtype, lvlm.decoder.config._attn_implementation), 1e-6)
    assert (logits - hidden_logits).abs().max() < bound * max(1, scale)
    assert torch.equal(tokens, hidden_tokens)
    assert (logits - plain).abs().max() / scale > 1e-3, "nothing was withdrawn, so nothing was proved"
    return trace


@pytest.mark.parametrize(("attention", "rows", "schedule"), one_by_one(FORMS, [PADDED, *ROWS], [MANY, *SCHEDULES]))
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_removing_equals_hiding(family, attention, rows, schedule):
    """Tokens cut at any site change nothing that hiding them from there on would not, at any step."""
    lvlm = tiny.shared(family, attention)
    compare(lvlm, tiny.prompts(lvlm, ROWS[rows]), SCHEDULES[schedule])


@pytest.mark.parametrize(("attention", "rows"), one_by_one(FORMS, [PADDED, *ROWS]))
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_removing_equals_hiding_in_float64(family, attention, rows):
    """In double precision the two agree to the last digits."""
    lvlm = tiny.shared(family, attention, torch.float64)
    inputs = tiny.prompts(lvlm, ROWS[rows])
    if attention == "eager" and not inputs["attention_mask"].all():
        assert steps(lvlm, inputs)[1].isnan().any(), "the host has learnt to pad here: drop this branch"
        return
    compare(lvlm, inputs, SCHEDULES["two stages"])


@pytest.mark.parametrize(
    ("attention", "rows", "schedule"), one_by_one(FORMS, [PADDED, *ROWS], [MANY, "input", "two stages"])
)
@pytest.mark.parametrize("family", ["llava", "llava_qwen"])
def test_renumbering_equals_hiding_with_lowered_positions(family, attention, rows, schedule):
    """Closing the gaps lowers each position by the tokens withdrawn in front of it, per layer and at
    decode.
    """
    lvlm = tiny.shared(family, attention)
    stages = plan(*((s.site, s.keep) for s in SCHEDULES[schedule]), positions="renumber")
    compare(lvlm, tiny.prompts(lvlm, ROWS[rows]), stages, renumber=True)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_without_a_cache(family):
    """use_cache=False prefills anew at every step, and each is cut anew."""
    lvlm = tiny.shared(family)
    inputs = tiny.prompts(lvlm, ROWS["left padded, other image counts"])
    trace = compare(lvlm, inputs, SCHEDULES["two stages"], use_cache=False)
    assert len(trace) == 3
    assert [call.decode_steps for call in trace] == [0] * 3
    assert trace[0].slots == []


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_plain_forward_on_either_padding(padding, attention):
    """A plain call returns the rows behind the cut, aligned at their end; padding on the right stays
    there.
    """
    lvlm = tiny.shared("llava", attention)
    inputs = tiny.prompts(lvlm, [[2, "i", 5], [1, "i", 1]], padding=padding)
    with torch.no_grad(), attach(lvlm, Scatter(), plan(("llm.layer.1", 4))) as trace:
        cut = lvlm(**inputs).logits
    gone = withdrawn(inputs, lvlm.visual_mask(inputs), trace[0])
    with torch.no_grad(), hiding(lvlm, inputs, gone):
        hid = lvlm(**inputs).logits
    tail = 5 if padding == "left" else 1
    for b, text in enumerate((5, 1)):
        end = hid.shape[1] - (0 if padding == "left" else int((inputs["attention_mask"][b] == 0).sum()))
        behind = hid.shape[1] - end
        last = min(text, tail) if padding == "left" else text
        a = cut[b, cut.shape[1] - behind - last : cut.shape[1] - behind]
        assert torch.allclose(a, hid[b, end - last : end], atol=1e-5)


def test_a_beam_is_a_row():
    """Beam search over a pruned prompt equals beam search over the hidden one."""
    inputs = tiny.prompts(tiny.shared("llava"), [[2, "i", 5], [1, "i", 1]])
    more = {"num_beams": 3, "max_new_tokens": 4, "do_sample": False}
    for attention in ("sdpa", "eager"):
        lvlm = tiny.shared("llava", attention)
        with torch.no_grad(), attach(lvlm, Scatter(), plan(("llm.input", 5), ("llm.layer.2", 2))) as trace:
            cut = lvlm.generate(**inputs, **more)
        wide = {key: inputs[key].repeat_interleave(3, dim=0) for key in ("attention_mask", "input_ids")}
        gone = withdrawn(wide, lvlm.visual_mask(wide), trace[0])
        with torch.no_grad(), hiding(lvlm, wide, gone):
            hid = lvlm.generate(**inputs, **more)
        assert trace[0].total == (9,) * 6
        assert torch.equal(cut, hid)


def test_sampling():
    """The same seed samples the same tokens from a pruned and from a hidden prompt."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, [[2, "i", 5]])
    more = {"do_sample": True, "temperature": 2.0, "max_new_tokens": 6}
    with torch.no_grad(), attach(lvlm, Scatter(), plan(("llm.layer.1", 4))) as trace:
        torch.manual_seed(7)
        cut = lvlm.generate(**inputs, **more)
    with torch.no_grad(), hiding(lvlm, inputs, withdrawn(inputs, lvlm.visual_mask(inputs), trace[0])):
        torch.manual_seed(7)
        assert torch.equal(cut, lvlm.generate(**inputs, **more))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bfloat16(attention):
    """Half precision runs, and stays as near to hiding as its digits allow."""
    lvlm = tiny.shared("llava", attention, torch.bfloat16)
    inputs = tiny.prompts(lvlm, ROWS["left padded, other image counts"])
    with attach(lvlm, Scatter(), SCHEDULES["two stages"]) as trace:
        _, cut = steps(lvlm, inputs, n=1)
    with hiding(lvlm, inputs, withdrawn(inputs, lvlm.visual_mask(inputs), trace[0])):
        _, hid = steps(lvlm, inputs, n=1)
    assert (cut - hid).abs().max() / hid.abs().max() < 0.05


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_row_keeps_the_same_alone_and_in_a_batch(family):
    """Batching changes neither which tokens stay nor what is answered."""
    lvlm = tiny.shared(family)
    rows = [[2, (2, 3), 5], [1, "i", 1], [6]]
    together = tiny.prompts(lvlm, rows)
    schedule = SCHEDULES["two stages"]
    with attach(lvlm, Scatter(), schedule) as batch:
        tokens, _ = steps(lvlm, together)
    real = together["attention_mask"].bool()
    first_patch = 0
    for b in range(len(rows)):
        alone = {
            "input_ids": together["input_ids"][b : b + 1, real[b]],
            "attention_mask": real[b : b + 1, real[b]].long(),
        }
        if family == "qwen":
            alone["mm_token_type_ids"] = together["mm_token_type_ids"][b : b + 1, real[b]]
        if b < 2:
            if family == "qwen":
                alone["image_grid_thw"] = together["image_grid_thw"][b : b + 1]
                patches = int(alone["image_grid_thw"].prod())
                alone["pixel_values"] = together["pixel_values"][first_patch : first_patch + patches]
                first_patch += patches
            else:
                alone["pixel_values"] = together["pixel_values"][b : b + 1]
        with attach(lvlm, Scatter(), schedule) as single:
            own, _ = steps(lvlm, alone)
        assert torch.equal(own[0, -3:], tokens[b, -3:])
        for a, s in zip(batch[0].stages, single[0].stages, strict=True):
            assert a.kept[b] == s.kept[0]
        assert batch[0].tokens_avg[b] == single[0].tokens_avg[0]
