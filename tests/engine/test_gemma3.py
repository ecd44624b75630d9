"""Gemma 3: pictures that see themselves both ways, two RoPE tables, and layers with a window."""

import functools

import pytest
import tiny
import torch
from crossings import one_by_one
from oracle import steps, withdrawn
from toys import Content, Scatter, Watch, plan
from transformers import DynamicCache, MistralConfig
from windowed import gemma, hiding, prompts

from btp.core.signals import Signal
from btp.engine.attach import attach

WIDE = 64
shared = functools.cache(gemma)
ROWS = {
    "one row": [[3, "i", 4]],
    "left padded, other image counts, text alone": [[2, "i", 5], [1, "i", 1, "i", 2], [6]],
}
SCHEDULES = {
    "input": plan(("llm.input", 3)),
    "layer 1": plan(("llm.layer.1", 4)),
    "layer 2": plan(("llm.layer.2", 2)),
    "three stages to none": plan(("llm.input", 0.8), ("llm.layer.1", 0.4), ("llm.layer.3", 0)),
}


def windows(lvlm):
    """Of each layer."""
    text = lvlm.decoder.config
    return [text.sliding_window if name == "sliding_attention" else None for name in text.layer_types]


def compare(lvlm, inputs, schedule, renumber=False, tolerance=1e-6, spans=None, **more):
    """Prune, then hide what the trace says was withdrawn; tokens and logits of every step must agree."""
    with attach(lvlm, Scatter(), schedule) as trace:
        tokens, logits = steps(lvlm, inputs, **{k: v() if callable(v) else v for k, v in more.items()})
    gone = withdrawn(inputs, lvlm.visual_mask(inputs), trace[0])
    with hiding(lvlm, inputs, gone, spans or windows(lvlm), renumber):
        hidden_tokens, hidden_logits = steps(lvlm, inputs, **{k: v() if callable(v) else v for k, v in more.items()})
    plain = steps(lvlm, inputs, n=more.get("n", 3))[1]
    scale = hidden_logits.abs().max().clamp(min=1)
    assert (logits - hidden_logits).abs().max() < tolerance * scale
    assert torch.equal(tokens, hidden_tokens)
    assert (logits - plain).abs().max() / scale > 1e-4, "nothing was withdrawn, so nothing was proved"
    return trace


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("window", [WIDE, 7])
def test_the_oracle_is_the_host(window, attention, rows):
    """With nothing hidden, masks made from scratch give what the host's own give."""
    lvlm = shared(window, attention)
    inputs = prompts(lvlm, ROWS[rows])
    _, logits = steps(lvlm, inputs, n=6)
    with hiding(lvlm, inputs, [], windows(lvlm)):
        assert (steps(lvlm, inputs, n=6)[1] - logits).abs().max() < 1e-6 * logits.abs().max().clamp(min=1)


@pytest.mark.parametrize(
    ("attention", "rows", "schedule"),
    one_by_one(["sdpa", "eager"], reversed(ROWS), ["three stages to none", *SCHEDULES]),
)
@pytest.mark.parametrize("window", [WIDE, 20, 7])
def test_removing_equals_hiding(window, attention, rows, schedule):
    """Within the window, where an answer grows out of it, and where the prompt is far longer than it."""
    lvlm = shared(window, attention)
    compare(lvlm, prompts(lvlm, ROWS[rows]), SCHEDULES[schedule], n=8)


@pytest.mark.parametrize("window", [WIDE, 20, 7])
def test_removing_equals_hiding_in_float64(window):
    """In double precision the two agree to the last digits."""
    lvlm = shared(window, "sdpa", torch.float64)
    inputs = prompts(lvlm, ROWS["left padded, other image counts, text alone"])
    compare(lvlm, inputs, SCHEDULES["three stages to none"], tolerance=1e-12, n=8)


@pytest.mark.parametrize("window", [WIDE, 7])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_without_a_cache_and_with_a_cache_that_forgets_nothing(attention, window):
    """Prefills at every step, and a cache whose layers are all kept whole."""
    lvlm = shared(window, attention)
    inputs = prompts(lvlm, ROWS["left padded, other image counts, text alone"])
    schedule = plan(("llm.layer.1", 4), ("llm.layer.2", 2))
    compare(lvlm, inputs, schedule, use_cache=False)
    compare(lvlm, inputs, schedule, past_key_values=DynamicCache, n=10)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_right_padding(attention):
    """A plain call on rows that are padded behind."""
    lvlm = shared(WIDE, attention)
    inputs = prompts(lvlm, [[2, "i", 5], [1, "i", 1]], padding="right")
    with torch.no_grad(), attach(lvlm, Scatter(), plan(("llm.layer.1", 4))) as trace:
        cut = lvlm(**inputs).logits
    gone = withdrawn(inputs, lvlm.visual_mask(inputs), trace[0])
    with torch.no_grad(), hiding(lvlm, inputs, gone, windows(lvlm)):
        hid = lvlm(**inputs).logits
    assert torch.allclose(cut[0, -6:], hid[0, -6:], atol=1e-5)
    assert torch.allclose(cut[1, -6:-4], hid[1, -6:-4], atol=1e-5)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_renumbering_turns_each_kind_of_layer_by_its_own_table(attention, rows):
    """Closed gaps lower the positions in both RoPE tables."""
    lvlm = shared(WIDE, attention)
    schedule = plan(("llm.layer.1", 5), ("llm.layer.2", 2), positions="renumber")
    compare(lvlm, prompts(lvlm, ROWS[rows]), schedule, renumber=True)


def test_renumbering_ends_at_the_window():
    """Whether a window counts closed gaps has no agreed meaning: refused where it begins to matter, padding aside."""
    schedule = plan(("llm.layer.1", 5), positions="renumber")
    message = "renumbers positions, but prompt and answer have {} tokens and layers of type sliding_attention see 20"
    lvlm = shared(20)
    with torch.no_grad(), attach(lvlm, Scatter(), schedule):
        with pytest.raises(ValueError, match=message.format(21)):
            lvlm.generate(**prompts(lvlm, [[2, "i", 8]]), max_new_tokens=1)
        with pytest.raises(ValueError, match=message.format(21)):
            lvlm.generate(**prompts(lvlm, [[2, "i", 6]]), max_new_tokens=4)
        lvlm.generate(**prompts(lvlm, [[2, "i", 6]]), max_new_tokens=2)
    full = plan(("llm.layer.1", 5))
    with torch.no_grad(), attach(lvlm, Scatter(), full):
        lvlm.generate(**prompts(lvlm, [[2, "i", 8]]), max_new_tokens=4)


@pytest.mark.parametrize("window", [WIDE, 7])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_keeping_everything_changes_nothing(attention, window):
    """Hooks and probes attached, keep 1.0: bit-identical, within the window and beyond."""
    lvlm = shared(window, attention)
    inputs = prompts(lvlm, ROWS["left padded, other image counts, text alone"])
    tokens, logits = steps(lvlm, inputs, n=6)
    signals = [Signal("attention", f"llm.layer.{i}", rows) for i in (0, 1) for rows in ("last", "text", "mean")]
    signals += [
        Signal("preview", "llm.layer.2", "last"),
        Signal("keys", "llm.layer.0"),
        Signal("rotary", "llm.layer.1"),
    ]
    pruner = Watch(*signals)
    with attach(lvlm, pruner, plan(("llm.layer.2", 1.0))):
        same_tokens, same = steps(lvlm, inputs, n=6)
    assert torch.equal(logits, same)
    assert torch.equal(tokens, same_tokens)
    assert pruner.seen


@pytest.mark.parametrize("window", [WIDE, 7])
def test_attention_rows_are_those_of_the_host(window):
    """Rows and means see a picture both ways and end at the window, as the host's own attention does."""
    lvlm = shared(window, "eager")
    inputs = prompts(lvlm, ROWS["left padded, other image counts, text alone"])
    with torch.no_grad():
        whole = lvlm(**inputs, output_attentions=True).attentions
    visual, real = lvlm.visual_mask(inputs), inputs["attention_mask"].bool()
    signals = [Signal("attention", f"llm.layer.{i}", rows) for i in (0, 1) for rows in ("last", "mean")]
    signals.append(Signal("preview", "llm.layer.2", "last"))
    for attention in ("eager", "sdpa"):
        host = shared(window, attention)
        pruner = Watch(*signals)
        with torch.no_grad(), attach(host, pruner, plan(("llm.layer.2", 1.0))):
            host(**inputs)
        _, _, seen = pruner.seen[0]
        for signal in signals:
            for b in range(2):
                rows = whole[max(signal.site.layer, 0)][b]
                wanted = rows[:, real[b]].mean(1) if signal.rows == "mean" else rows[:, -1]
                found = seen[signal][b, :, 0, : int(visual[b].sum())]
                assert torch.allclose(found, wanted[:, visual[b]], atol=1e-6)
    both = whole[1][0][:, visual[0]][..., visual[0]]
    assert (both.triu(1) > 0).any(), "the host must see pictures both ways"


def test_what_a_block_adds_has_passed_the_norm_behind_it():
    """What attention and MLP add to the residual makes the layer's whole change."""
    lvlm = shared(WIDE)
    parts = [Signal("update", "llm.layer.1", None, form) for form in ("attention", "mlp", "layer")]
    pruner = Watch(*parts)
    with torch.no_grad(), attach(lvlm, pruner, plan(("llm.layer.2", 1.0))):
        lvlm(**prompts(lvlm, ROWS["one row"]))
    attention, mlp, layer = (pruner.seen[0][2][part] for part in parts)
    assert torch.allclose(attention[1] + mlp[1], layer[1] - layer[0], atol=1e-5)


@pytest.mark.parametrize("window", [WIDE, 7])
def test_a_row_keeps_the_same_alone_and_in_a_batch(window):
    """Batching changes neither which tokens stay nor what is answered."""
    lvlm, rows = shared(window), [[2, "i", 5], [1, "i", 1]]
    schedule = plan(("llm.input", 0.7), ("llm.layer.2", 0.3))
    together = prompts(lvlm, rows)
    with attach(lvlm, Content(), schedule) as batch:
        tokens, _ = steps(lvlm, together, n=4)
    for b in range(2):
        real = together["attention_mask"][b].bool()
        alone = {k: together[k][b : b + 1, real] for k in ("input_ids", "attention_mask", "token_type_ids")}
        alone["pixel_values"] = together["pixel_values"][b : b + 1]
        with attach(lvlm, Content(), schedule) as single:
            own, _ = steps(lvlm, alone, n=4)
        assert torch.equal(own[0, -4:], tokens[b, -4:])
        assert [s.kept[b] for s in batch[0].stages] == [s.kept[0] for s in single[0].stages]


def test_slots():
    """A layer with a window holds at most one place less than it, a full one what was alive."""
    lvlm = shared(7)
    with torch.no_grad(), attach(lvlm, Scatter(), plan(("llm.layer.1", 1))) as trace:
        out = lvlm.generate(**prompts(lvlm, [[1, "i", 1]]), max_new_tokens=3, return_dict_in_generate=True)
    assert trace.last.slots == [6, 5, 5, 5]  # of 13, then 5 alive
    assert [layer.keys.shape[-2] for layer in out[tiny.CACHE].layers] == [6, 7, 6, 6]


class Broken(Watch):
    """Fails in the middle of a prefill."""

    def score(self, tokens, signals, stage):
        raise KeyError("ours")


def test_nothing_stays_behind():
    """Neither hooks nor registry entries outlive an exception."""
    lvlm = gemma(WIDE)
    inputs = prompts(lvlm, ROWS["one row"])
    names = lvlm.decoder.config._attn_implementation, lvlm.model.config._attn_implementation
    _, logits = steps(lvlm, inputs)
    seen = [Signal(kind, "llm.layer.0", rows) for kind, rows in (("attention", "last"), ("update", None))]
    with pytest.raises(KeyError, match="ours"), attach(lvlm, Broken(*seen), SCHEDULES["layer 1"]):
        steps(lvlm, inputs)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lvlm.layers.modules())
    assert (lvlm.decoder.config._attn_implementation, lvlm.model.config._attn_implementation) == names
    assert torch.equal(steps(lvlm, inputs)[1], logits)


def test_stages_in_the_tower_are_refused():
    """Pooling joins the tower's tokens."""
    message = "in Gemma3ForConditionalGeneration average pooling joins several of the tower's tokens into each visual"
    watch = Watch(Signal("keys", "llm.layer.0"))
    with pytest.raises(ValueError, match=message), attach(shared(WIDE), watch, plan(("vision.layer.1", 4))):
        pass


@pytest.mark.parametrize("rows", [[[3, "i", 4]], [[2, "i", 5], [1, "i", 1, "i", 2]]])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("window", [40, 12, 5])
def test_a_decoder_with_windows_alone(window, attention, rows):
    """Mistral behind LLaVA, every layer with a window."""
    lvlm = mistral(window, attention)
    schedule = plan(("llm.layer.1", 4), ("llm.layer.3", 2))
    compare(lvlm, tiny.prompts(lvlm, rows), schedule, spans=[window] * 4, n=8)


@functools.cache
def mistral(window, attention):
    """A tiny LLaVA with a Mistral decoder."""
    return tiny.llava(attention, text=lambda **more: MistralConfig(**more, sliding_window=window))
