"""Signals equal what eager attention and hidden-state outputs of the host say."""

import pytest
import tiny
import torch
from toys import Scatter, Watch, plan

from btp.core.signals import Signal
from btp.engine.attach import attach
from btp.engine.observe import observe

ROWS = [[2, (2, 3), 5], [1, "i", 1, (1, 2), 2], [4]]


def picked(x, visual):
    """Visual entries of [B, S, ...], padded at the end with 0."""
    N = int(visual.sum(1).max())
    out = torch.zeros(len(x), N, *x.shape[2:])
    for b, row in enumerate(visual):
        out[b, : row.sum()] = x[b, row]
    return out


def reference(family, rows=ROWS):
    """Eager attentions and hidden states of the unpruned model."""
    lvlm = tiny.shared(family, "eager")
    inputs = tiny.prompts(lvlm, rows)
    with torch.no_grad():
        out = lvlm(**inputs, output_attentions=True, output_hidden_states=True)
    return inputs, lvlm.visual_mask(inputs), out


def text_places(inputs, visual):
    """Places of the real text tokens behind the first image, per row."""
    behind = inputs["attention_mask"].bool() & ~visual & (visual.cumsum(1) > 0)
    return [row.nonzero().flatten().tolist() for row in behind]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_attention_rows(family, attention):
    """Last and text rows of every layer are the host's own probabilities, over all keys."""
    inputs, visual, out = reference(family)
    lvlm = tiny.shared(family, attention)
    signals = [Signal("attention", f"llm.layer.{i}", rows) for i in range(4) for rows in ("last", "text")]
    with torch.no_grad(), observe(lvlm, signals) as looks:
        lvlm(**inputs)
    texts = text_places(inputs, visual)
    for signal in signals:
        seen, host = looks[0].signals[signal], out.attentions[signal.site.layer]
        assert seen.shape[-1] == visual.sum(1).max()
        if signal.rows == "last":
            wanted = picked(host[:, :, -1].transpose(1, 2), visual).transpose(1, 2)
            assert torch.allclose(seen[:, :, 0], wanted, atol=1e-7)
            continue
        valid = looks[0].signals.rows_valid(signal)
        assert valid.sum(1).tolist() == [len(t) for t in texts]
        for b, places in enumerate(texts):
            wanted = host[b][:, places][:, :, visual[b]]
            assert torch.allclose(seen[b, :, : len(places), : int(visual[b].sum())], wanted, atol=1e-7)


def test_logits_are_scaled_and_unnormalised():
    """softmax over logits and text columns gives the probabilities back: head by head, order by order."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, [["i"]])  # visual tokens alone, so that all keys are visible
    probs, logits = (Signal("attention", "llm.layer.2", "last", form) for form in ("probs", "logits"))
    with torch.no_grad(), observe(lvlm, [probs, logits]) as looks:
        lvlm(**inputs)
    seen = looks[0].signals
    assert torch.allclose(seen[logits].softmax(-1), seen[probs], atol=1e-6)
    assert not torch.allclose(seen[logits], seen[probs], atol=1e-2)


def test_logits_of_later_columns_are_closed():
    """A text row does not see images behind it: probability 0, logit -inf."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, [["i", 1, "i", 1]])
    probs, logits = (Signal("attention", "llm.layer.1", "text", form) for form in ("probs", "logits"))
    with torch.no_grad(), observe(lvlm, [probs, logits]) as looks:
        lvlm(**inputs)
    assert (looks[0].signals[probs][0, :, 0, 9:] == 0).all()
    assert (looks[0].signals[logits][0, :, 0, 9:] == -torch.inf).all()
    assert looks[0].signals[logits][0, :, 1].isfinite().all()


@pytest.mark.parametrize("padding", ["left", "right"])
def test_last_row_is_the_last_real_token(padding):
    """Padding behind the prompt is passed over."""
    signal = Signal("attention", "llm.layer.1", "last")
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, [[2, "i", 5], [1, "i", 1]], padding=padding)
    alone = tiny.prompts(lvlm, [[2, "i", 5], [1, "i", 1]])
    short = {"input_ids": alone["input_ids"][1:, 5:], "pixel_values": alone["pixel_values"][1:]}
    with torch.no_grad(), observe(lvlm, [signal]) as looks:
        lvlm(**inputs)
        lvlm(**short)
    assert torch.allclose(looks[0].signals[signal][1], looks[1].signals[signal][0], atol=1e-6)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_hidden_and_update(family):
    """Hidden states in front of a layer, and in and out of it, are the host's."""
    inputs, visual, out = reference(family)
    lvlm = tiny.shared(family)
    hidden = [Signal("hidden", f"llm.layer.{i}") for i in range(4)]
    updates = [Signal("update", f"llm.layer.{i}") for i in range(3)]
    text, normed = Signal("hidden", "llm.layer.2", "text"), Signal("hidden", "llm.layer.2", None, "normed")
    with torch.no_grad(), observe(lvlm, [*hidden, *updates, text, normed]) as looks:
        lvlm(**inputs)
    seen = looks[0].signals
    for i, signal in enumerate(hidden):
        assert torch.allclose(seen[signal], picked(out.hidden_states[i], visual), atol=1e-5)
    for i, signal in enumerate(updates):
        entered, left = seen[signal]
        assert torch.allclose(entered, picked(out.hidden_states[i], visual), atol=1e-5)
        assert torch.allclose(left, picked(out.hidden_states[i + 1], visual), atol=1e-5)
    for b, places in enumerate(text_places(inputs, visual)):
        assert torch.allclose(seen[text][b, : len(places)], out.hidden_states[2][b, places], atol=1e-5)
    assert torch.allclose(seen[normed], lvlm.decoder.norm(seen[hidden[2]]), atol=1e-6)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_keys_and_values(family):
    """Keys and values of grouped heads are what the cache holds, unrepeated and behind RoPE."""
    inputs, visual, out = reference(family)
    lvlm = tiny.shared(family)
    signals = [Signal(kind, f"llm.layer.{i}") for kind in ("keys", "values") for i in range(4)]
    text = Signal("keys", "llm.layer.3", "text")
    with torch.no_grad(), observe(lvlm, [*signals, text]) as looks:
        lvlm(**inputs)
    for signal in signals:
        held = getattr(out[tiny.CACHE].layers[signal.site.layer], signal.kind)  # [B, Hkv, S, d]
        assert torch.allclose(looks[0].signals[signal].transpose(1, 2), picked(held.transpose(1, 2), visual), atol=1e-5)
    held = out[tiny.CACHE].layers[3].keys
    for b, places in enumerate(text_places(inputs, visual)):
        assert torch.allclose(looks[0].signals[text][b, :, : len(places)], held[b][:, places], atol=1e-5)


def test_callback_keeps_nothing():
    """With a callback each signal is handed over in the order of the layers, and nothing is stored."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, ROWS)
    got = []
    signals = [Signal("update", f"llm.layer.{i}") for i in range(4)]
    watch = observe(lvlm, signals, lambda signal, value, look: got.append((signal, value, look)))
    with torch.no_grad(), watch as looks:
        lvlm.generate(**inputs, max_new_tokens=3)
    assert [s for s, _, _ in got] == signals
    assert all(look is looks[0] for _, _, look in got)
    assert len(looks[0].signals) == 0
    assert looks[0].valid.sum(1).tolist() == list(looks[0].total)
    assert looks[0].coord.shape == (3, 18, 3)


def test_signals_of_a_stage_cover_its_tokens():
    """Signals seen before an earlier cut are restricted to the tokens alive, in the order of Tokens."""
    rows = [[2, "i", 5], [1, "i", 1, "i", 2], [4]]
    inputs, visual, out = reference("llava", rows)
    lvlm = tiny.shared("llava")
    asked = (
        Signal("attention", "llm.layer.0", "last"),
        Signal("hidden", "llm.layer.0"),
        Signal("update", "llm.layer.0"),
        Signal("keys", "llm.layer.0"),
        Signal("hidden", "llm.layer.2", "text"),
        Signal("attention", "llm.layer.1", "last"),
    )

    class Late(Watch):
        def needs(self, stage):
            return asked if stage.site.layer == 2 else ()

    pruner = Late()
    with torch.no_grad(), attach(lvlm, pruner, plan(("llm.layer.1", 0.5), ("llm.layer.2", 2))) as trace:
        lvlm(**inputs)
    stage, tokens, signals = pruner.seen[1]
    kept = trace[0].stages[0].kept
    assert str(stage.site) == "llm.layer.2"
    assert tokens.keep_counts(stage) == (2, 2, 0)
    for b in range(2):
        places = visual[b].nonzero().flatten()[torch.tensor(kept[b])]
        n = len(places)
        assert tokens.index[b, :n].tolist() == kept[b]
        assert tokens.valid[b].sum() == n
        lead = int((inputs["attention_mask"][b] == 0).sum())
        assert (tokens.position[b, :n] + lead).tolist() == places.tolist()
        assert torch.allclose(signals[asked[0]][b, :, 0, :n], out.attentions[0][b, :, -1, places], atol=1e-6)
        assert torch.allclose(signals[asked[1]][b, :n], out.hidden_states[0][b, places], atol=1e-5)
        assert torch.allclose(signals[asked[2]][1, b, :n], out.hidden_states[1][b, places], atol=1e-5)
        held = out[tiny.CACHE].layers[0].keys[b][:, places]
        assert torch.allclose(signals[asked[3]][b, :, :n], held, atol=1e-5)
    assert tokens.text is not None
    assert torch.equal(tokens.text, signals[asked[4]])
    assert torch.equal(tokens.text_valid, signals.rows_valid(asked[4]))
    assert signals[asked[5]].shape == (3, 4, 1, tokens.index.shape[1])
    assert tokens.total.tolist() == [9, 18, 0]
    assert (tokens.coord[2] == -1).all()


def test_nothing_alive_no_work():
    """Behind keep 0, and for a batch without images, later stages neither look nor decide."""
    lvlm = tiny.shared("llava")
    pruner = Watch(Signal("attention", "llm.layer.0", "last"))
    late = plan(("llm.layer.1", 4), ("llm.layer.2", 0))
    with torch.no_grad(), attach(lvlm, pruner, late) as trace:
        lvlm(**tiny.prompts(lvlm, [[4], [5]]))
    assert pruner.seen == []
    assert not any(trace.fired.values())
    with torch.no_grad(), attach(lvlm, Scatter(), plan(("llm.input", 0.05), ("llm.layer.2", 0))) as trace:
        lvlm(**tiny.prompts(lvlm, [["i", 4]]))  # 0.05 of 9 rounds down to none
    assert trace.fired == {"llm.input": True, "llm.layer.2": False}
