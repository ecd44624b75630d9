"""FlashAttention-2: what the engine hands to it, by dense kernels that compute from exactly that."""

import functools

import pytest
import tiny
import tiny_text
import torch
from crossings import one_by_one
from flash import FLASH, kernels, switched
from oracle import hiding, steps, withdrawn
from slot_methods import METHODS
from slot_oracle import dense, scale
from test_oracle import MANY, PADDED, ROWS, SCHEDULES
from toys import Content, Fold, Scatter, Watch, plan

from btp.core.signals import Signal
from btp.engine.attach import attach
from btp.engine.training.masking import masking
from btp.pruners.lvpruning import LVPruning

TOLERANCE = 2e-6
FAMILIES = tiny.FAMILIES | tiny.DEEPSTACK


@functools.cache
def flash(family):
    """A model under FlashAttention-2, shared."""
    return switched(FAMILIES[family]())


@functools.cache
def flash_text(family):
    """A text model likewise."""
    return switched(tiny_text.text_lm(family))


def near(one, other):
    """Equal up to rounding."""
    assert (one - other).abs().max() < TOLERANCE * other.abs().max().clamp(min=1), float((one - other).abs().max())


@pytest.mark.parametrize(("rows", "schedule"), one_by_one([PADDED, *ROWS], [MANY, *SCHEDULES]))
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_removing_equals_hiding(family, rows, schedule):
    """In prefill and three decode steps; the hidden run is another implementation's, on the same weights."""
    lvlm, plain = flash(family), tiny.shared(family)
    inputs = tiny.prompts(lvlm, ROWS[rows])
    with kernels() as called, attach(lvlm, Scatter(), SCHEDULES[schedule]) as trace:
        tokens, cut = steps(lvlm, inputs)
    with hiding(plain, inputs, withdrawn(inputs, plain.visual_mask(inputs), trace[0])):
        hidden_tokens, hid = steps(plain, inputs)
    near(cut, hid)
    assert torch.equal(tokens, hidden_tokens)
    assert called.dense or called.ragged


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_in_plain_calls(family, padding):
    """Prefill and steps by hand, where padding behind the prompt stays between it and the answer."""
    lvlm, plain = flash(family), tiny.shared(family)
    inputs = tiny.prompts(lvlm, [[2, "i", 5], [1, "i", 1, (1, 2), 2] if family == "qwen" else [1, "i", 2]], padding)
    schedule = plan(("llm.layer.1", 5), ("llm.layer.3", 2))
    with kernels(), attach(lvlm, Scatter(), schedule) as trace:
        cut = by_hand(lvlm, inputs)
    with hiding(plain, inputs, withdrawn(inputs, plain.visual_mask(inputs), trace[0])):
        near(cut, by_hand(plain, inputs))


def by_hand(lvlm, inputs, n=3):
    """Logits of a prefill's last tokens and of n fixed tokens behind it, position by position."""
    mask = inputs["attention_mask"]
    behind = mask.shape[1] - (mask * torch.arange(mask.shape[1])).argmax(1)  # rows are aligned at their end
    found = []
    with torch.no_grad():
        places = {} if "mm_token_type_ids" in inputs else {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
        out = lvlm.model(**inputs, **places, use_cache=True)
        found.append(torch.stack([row[-n] for row, n in zip(out.logits, behind, strict=True)]))
        for i in range(n):
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            place = mask.sum(1, keepdim=True) - 1
            if "mm_token_type_ids" in inputs:
                place = (place + lvlm.model.model.rope_deltas).expand(3, -1, -1)
            more = {"attention_mask": mask, "position_ids": place, tiny.CACHE: out.past_key_values}
            out = lvlm.model(input_ids=torch.full_like(place.view(-1, len(mask), 1)[0], 7 + i), **more)
            found.append(out.logits[:, -1])
    return torch.stack(found)


def test_gaps_are_no_packed_prompts():
    """Behind a cut of one prompt the kernels get one sequence, by the plain function, and no position ids to read."""
    lvlm = flash("llava")
    inputs = tiny.prompts(lvlm, [[2, "i", 5]])
    with kernels() as called, attach(lvlm, Scatter(), plan(("llm.layer.1", 4))):
        steps(lvlm, inputs, n=2)
    assert called.ragged == []
    assert called.dense == 2 * lvlm.num_layers + len(lvlm.towers["vision"].layers)


def test_padding_leaves_the_batch():
    """Rows of unequal lengths are laid end to end, filled rows among none of them."""
    lvlm = flash("llava")
    inputs = tiny.prompts(lvlm, [[2, "i", 5], [4]])
    with kernels() as called, torch.no_grad(), attach(lvlm, Scatter(), plan(("llm.layer.2", 4))):
        lvlm(**inputs)
    whole, cut = ([0, 16, 20],) * 2, ([0, 11, 15],) * 2
    assert called.ragged == [whole, whole, cut, cut]


@pytest.mark.parametrize(
    "signal",
    [
        Signal("attention", "llm.layer.1", "last"),
        Signal("attention", "llm.layer.1", "text", "logits"),
        Signal("attention", "llm.layer.1", "mean"),
        Signal("preview", "llm.layer.2", "last"),
        Signal("keys", "llm.layer.1"),
        Signal("queries", "llm.layer.0", "all"),
        Signal("rotary", "llm.layer.1"),
        Signal("change", "llm.layer.1", None, "mlp"),
        Signal("attention", "vision.feature", "cls"),
        Signal("attention", "vision.feature", "mean"),
        Signal("keys", "vision.feature"),
    ],
    ids=str,
)
def test_signals_are_those_of_sdpa(signal):
    """Behind a first cut, in a padded batch; and the kernels go on under their own name."""
    schedule, found = plan(("llm.layer.1", 6), ("llm.layer.2", 3)), []
    inputs = tiny.prompts(flash("llava"), [[2, "i", 5], [1, "i", 2]])
    for lvlm in (flash("llava"), tiny.shared("llava")):
        pruner = Late(signal)
        with kernels(), attach(lvlm, pruner, schedule):
            logits = steps(lvlm, inputs)[1]
        found.append((logits, pruner.seen[-1][2][signal]))
    near(found[0][0], found[1][0])
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5)


class Late(Watch):
    """Asks at the second stage alone."""

    def needs(self, stage):
        return self._signals if stage.site.layer == 2 else ()


@pytest.mark.parametrize("site", ["vision.layer.1", "vision.mlp.0", "vision.output", "llm.input"])
def test_towers_and_merges(site):
    """Tokens that leave or flow together in the tower, or in front of the language model."""
    for pruner in (Content(), Fold()):
        logits = []
        for lvlm in (flash("llava"), tiny.shared("llava")):
            inputs = tiny.prompts(lvlm, [[2, "i", 5], [1, "i", 2]])
            with kernels(), attach(lvlm, pruner, plan((site, 4))):
                logits.append(steps(lvlm, inputs)[1])
        near(*logits)


def test_renumbered_positions():
    """Closed gaps turn the same way."""
    logits = []
    for lvlm in (flash("llava"), tiny.shared("llava")):
        inputs = tiny.prompts(lvlm, [[2, "i", 5], [1, "i", 2]])
        with kernels(), attach(lvlm, Scatter(), plan(("llm.layer.1", 4), positions="renumber")):
            logits.append(steps(lvlm, inputs)[1])
    near(*logits)


@pytest.mark.parametrize("name", METHODS)
def test_evicting_equals_hiding(name):
    """Each head of a cache with other tokens, rows of unequal lengths: every method, in every step."""
    host, inputs = flash_text("llama"), tiny_text.prompts([20, 14])
    with kernels(), attach(host, *METHODS[name]) as trace:
        tokens, logits = steps(host, inputs, n=6)
    hidden = dense(tiny_text.shared("llama"), inputs, tokens, trace.last)
    assert (logits - hidden).abs().max() < TOLERANCE * scale(hidden)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "mistral", "opt"])
def test_text_families(family):
    """Other decoders, one prompt and a padded batch."""
    for lengths in ([16], [20, 14]):
        logits = []
        for host in (flash_text(family), tiny_text.shared(family)):
            inputs = tiny_text.prompts(lengths)
            with kernels(), attach(host, Scatter(), plan(("llm.layer.1", 8), ("llm.layer.3", 4))):
                logits.append(steps(host, inputs)[1])
        near(*logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_everything_changes_nothing(family):
    """Bit for bit, and nothing stays behind."""
    lvlm = flash(family)
    inputs = tiny.prompts(lvlm, [[2, "i", 5], [1, "i", 2]])
    with kernels():
        plain = steps(lvlm, inputs)
        with attach(lvlm, Watch(Signal("attention", "llm.layer.0", "last")), plan(("llm.layer.1", 1.0))):
            kept = steps(lvlm, inputs)
        assert torch.equal(plain[1], kept[1])
        assert torch.equal(steps(lvlm, inputs)[1], plain[1])
    assert lvlm.decoder.config._attn_implementation == FLASH


def test_what_is_refused():
    """Tokens that come back, prompts beyond a window, training: each by name."""
    lazy = plan(("llm.layer.2", 4), phase="both")
    for host, schedule in ((flash_text("llama"), lazy), (flash("llava"), lazy)):
        with pytest.raises(ValueError, match=r"the decoder runs flash_attention_2, where a row sees the keys in front"):
            attach(host, Watch(Signal("attention", "llm.layer.1", "last")), schedule).__enter__()
    narrow = switched(tiny_text.text_lm("mistral", sliding_window=12))
    beyond = pytest.raises(ValueError, match=r"The prompt has 16 tokens and layers of type sliding_attention see 12")
    with beyond, kernels(), attach(narrow, Scatter(), plan(("llm.layer.1", 4))):
        steps(narrow, tiny_text.prompts([16]))
    learns = LVPruning(width=None, blocks=2, heads=4, tau=1.0, noise=0.0, seed=0)
    with pytest.raises(ValueError, match="takes no weights for single keys"):
        masking(flash("llava"), learns, plan(("llm.layer.1", 4), settings={"target": 0.4})).__enter__()
