"""What lies in the cache behind a cut, and how a conversation may go on."""

import copy
import inspect
import pickle

import pytest
import tiny
import torch
from toys import Scatter, plan
from transformers import DynamicCache

from btp.core.signals import Signal
from btp.engine.attach import attach
from btp.engine.decoder import kv_cache as kv
from btp.engine.hooks.arguments import Binding
from btp.engine.observe import observe

TWO = plan(("llm.layer.1", 5), ("llm.layer.3", 2))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_slots_are_freed_layer_by_layer(attention):
    """Each layer holds what entered it, once, plus one slot a step; the trace says the same."""
    lvlm = tiny.shared("llava", attention)
    inputs = tiny.prompts(lvlm, [[2, "i", 5], [1, "i", 1, "i", 2]])
    with torch.no_grad(), attach(lvlm, Scatter(), TWO) as trace:
        out = lvlm.generate(**inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    S = inputs["input_ids"].shape[1]
    call = trace.last
    assert call.slots == [S, 7 + 5, 7 + 5, 7 + 2]
    assert [layer.keys.shape[-2] for layer in out[tiny.CACHE].layers] == [n + 3 for n in call.slots]
    assert call.cache_bytes == [2 * 2 * 2 * n * 8 * 4 for n in call.slots]  # k and v, 2 rows, 2 heads, 8 floats
    assert call.visual == [(9, 18), (5, 5), (5, 5), (2, 2)]
    assert call.tokens == [(16, 22), (12, 9), (12, 9), (9, 6)]
    assert call.tokens_avg == ((9 + 5 + 5 + 2) / 4, (18 + 5 + 5 + 2) / 4)
    assert call.decode_steps == 3
    assert trace.fired == {"llm.layer.1": True, "llm.layer.3": True}
    first, second = (stage.kept for stage in call.stages)
    assert all(set(b) <= set(a) for a, b in zip(first, second, strict=True))


def test_calls_accumulate():
    """One record per prompt, in order; each is new."""
    lvlm = tiny.shared("llava")
    with torch.no_grad(), attach(lvlm, Scatter(), TWO) as trace:
        for n in (1, 2):
            lvlm.generate(**tiny.prompts(lvlm, [[n, "i", 2]]), max_new_tokens=n, do_sample=False)
    assert [call.text for call in trace] == [(3,), (4,)]
    assert [call.decode_steps for call in trace] == [0, 1]
    assert trace.tokens_avg == [5.25, 5.25]


def test_second_turn_on_the_same_cache():
    """A second turn re-feeds what the host thinks is missing, so it is refused."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, [[2, "i", 5]])
    for schedule in (plan(("llm.input", 3)), TWO):
        with torch.no_grad(), attach(lvlm, Scatter(), schedule):
            out = lvlm.generate(**inputs, max_new_tokens=2, do_sample=False, return_dict_in_generate=True)
            ids = torch.cat([out.sequences, torch.full((1, 4), 7)], dim=1)
            with pytest.raises(ValueError, match="a second turn on the same past_key_values; pass the whole"):
                lvlm.generate(input_ids=ids, past_key_values=out[tiny.CACHE], max_new_tokens=2, do_sample=False)


def test_foreign_caches():
    """A cache filled outside, or by an earlier prompt, is refused; a prompt with an empty one is a
    prefill.
    """
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, [[2, "i", 5]])
    step = {"input_ids": torch.tensor([[5]]), "position_ids": torch.tensor([[16]])}
    with torch.no_grad():
        outside = lvlm(**inputs, use_cache=True)[tiny.CACHE]
        with attach(lvlm, Scatter(), TWO):
            with pytest.raises(ValueError, match="was filled outside the present attach"):
                lvlm(**step, past_key_values=outside)
            mine = lvlm(**inputs, past_key_values=DynamicCache())[tiny.CACHE]
            copied = copy.deepcopy(mine)
            lvlm(**step, past_key_values=mine)
            with pytest.raises(ValueError, match="or is a copy"):
                lvlm(**step, past_key_values=copied)


CUTS = {
    "layer": (Scatter, plan(("llm.layer.1", 5))),
    "input": (Scatter, plan(("llm.input", 3))),
    "tower": (Scatter, plan(("vision.output", 4))),
    "withdrawn": (lambda: None, plan(("llm.layer.2", 0))),
    "renumbered": (Scatter, plan(("llm.layer.1", 5), positions="renumber")),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_cut_cache_is_not_continued_outside(cut, attention):
    """Not by a step, not by generate(), not as a copy, not in the next attach or observe, not in another model."""
    lvlm, other = tiny.shared("llava", attention), tiny.llava(attention)
    make, schedule = CUTS[cut]
    inputs = tiny.prompts(lvlm, [[2, "i", 5], [1, "i", 2]])
    step = {"input_ids": torch.tensor([[5], [6]]), "position_ids": torch.tensor([[16], [13]])}
    refused = "pruned inside an attach and is continued outside"
    with torch.no_grad():
        with attach(lvlm, make(), schedule):
            out = lvlm.generate(**inputs, max_new_tokens=2, do_sample=False, return_dict_in_generate=True)
            cache = out[tiny.CACHE]
            with pytest.raises(ValueError, match=refused):
                other(**step, **{tiny.CACHE: cache})
            held = [layer.keys.clone() for layer in cache.layers]
        for model in (lvlm, other):
            for used in (cache, copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
                with pytest.raises(ValueError, match=refused):
                    model(**step, **{tiny.CACHE: used})
        ids = torch.cat([out.sequences, torch.full((2, 4), 7)], dim=1)
        with pytest.raises(ValueError, match=refused):
            lvlm.generate(input_ids=ids, max_new_tokens=2, do_sample=False, **{tiny.CACHE: cache})
        for again in (attach(lvlm, make(), schedule), attach(lvlm)):
            with again, pytest.raises(ValueError, match="was filled outside the present attach"):
                lvlm(**step, **{tiny.CACHE: cache})
        with observe(lvlm, [Signal("keys", "llm.layer.0")]), pytest.raises(ValueError, match=refused):
            lvlm(**step, **{tiny.CACHE: cache})
    assert all(torch.equal(a, layer.keys) for a, layer in zip(held, cache.layers, strict=True))


def test_an_uncut_cache_goes_on_outside():
    """Nothing was pruned: a text, a stage that keeps all, an attach without stages."""
    lvlm = tiny.shared("llava")
    picture, text = tiny.prompts(lvlm, [[2, "i", 5]]), tiny.prompts(lvlm, [[9]])
    with torch.no_grad():
        for inputs, schedule in ((text, TWO), (picture, plan(("llm.layer.1", 1.0))), (picture, plan())):
            step = {"input_ids": torch.tensor([[5]])}
            cache = lvlm(**inputs, use_cache=True)[tiny.CACHE]
            expected = lvlm(**step, **{tiny.CACHE: cache}).logits
            with attach(lvlm, Scatter() if schedule else None, schedule):
                cache = lvlm(**inputs, use_cache=True)[tiny.CACHE]
            assert type(cache) is DynamicCache
            assert torch.equal(lvlm(**step, **{tiny.CACHE: cache}).logits, expected)


def test_a_cache_in_a_tuple():
    """return_dict=False hands the cache back in a tuple."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, [[2, "i", 5]])
    step = {"input_ids": torch.tensor([[5]]), "position_ids": torch.tensor([[16]])}
    with torch.no_grad(), attach(lvlm, Scatter(), TWO) as trace:
        expected = lvlm(**step, **{tiny.CACHE: lvlm(**inputs, use_cache=True)[tiny.CACHE]}).logits
        cache = next(x for x in lvlm(**inputs, use_cache=True, return_dict=False) if isinstance(x, DynamicCache))
        assert torch.equal(lvlm(**step, **{tiny.CACHE: cache}).logits, expected)
    assert trace[0].slots == trace[1].slots == [16, 12, 12, 9]


@pytest.mark.parametrize(("name", "old"), [("cache", "past_key_values"), ("past_key_values", "cache")])
def test_the_caches_name_is_the_hosts(name, old):
    """transformers 5.24 renamed the argument; what the caller says in either name is the cache."""

    class Host(torch.nn.Module):
        def forward(self, hidden_states, **kwargs): ...

    Host.forward.__signature__ = inspect.signature(eval(f"lambda self, hidden_states, {name}=None: 0"))
    assert kv.argument(Binding(Host())) == name
    cache = DynamicCache()
    assert kv.given({name: cache}) is kv.given({old: cache, name: None}) is cache
    assert kv.given({"use_cache": True}) is None
    assert kv.returned(type("Output", (), {name: cache})()) is cache
    assert kv.returned((torch.zeros(1), cache)) is cache
    assert kv.returned((torch.zeros(1),)) is None


def test_a_hand_written_loop():
    """Explicit positions make a hand-written loop right; without them, behind a cut at the input, it is
    refused.
    """
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, [[2, "i", 5]])
    schedule = plan(("llm.input", 3))
    with torch.no_grad(), attach(lvlm, Scatter(), schedule):
        tokens = lvlm.generate(**inputs, max_new_tokens=3, do_sample=False)[0, -3:].tolist()
        out = lvlm(**inputs, use_cache=True)
        made = [int(out.logits[0, -1].argmax())]
        for t in range(2):
            at = {"position_ids": torch.tensor([[16 + t]]), "past_key_values": out[tiny.CACHE]}
            out = lvlm(input_ids=torch.tensor([[made[-1]]]), **at)
            made.append(int(out.logits[0, -1].argmax()))
        assert made == tokens
        out = lvlm(**inputs, use_cache=True)
        with pytest.raises(ValueError, match="without position_ids behind a cut in front of layer 0"):
            lvlm(input_ids=torch.tensor([[5]]), past_key_values=out[tiny.CACHE])
        out = lvlm(**inputs, use_cache=True)
        with pytest.raises(ValueError, match="The prompt had 1 rows, the step behind it has 2"):
            lvlm(input_ids=torch.tensor([[5], [5]]), past_key_values=out[tiny.CACHE])
        out = lvlm(**inputs, use_cache=True)
        wrong = {"attention_mask": torch.ones(1, 3), "position_ids": torch.tensor([[16]])}
        with pytest.raises(ValueError, match=r"attention_mask is \(1, 3\) at a step where 17 tokens were seen"):
            lvlm(input_ids=torch.tensor([[5]]), past_key_values=out[tiny.CACHE], **wrong)


def test_masked_generated_tokens_stay_masked():
    """A zero that the caller puts behind the prompt hides that generated token in every layer."""
    lvlm = tiny.shared("llava", "eager")
    inputs = tiny.prompts(lvlm, [[2, "i", 5]])

    def third_logits(second_token, hide):
        with attach(lvlm, Scatter(), TWO):
            out = lvlm(**inputs, use_cache=True)
            for t, token in enumerate((second_token, 6)):
                mask = torch.ones(1, 17 + t, dtype=torch.long)
                if hide and t == 1:
                    mask[0, 16] = 0
                at = {"position_ids": torch.tensor([[16 + t]]), "attention_mask": mask}
                out = lvlm(input_ids=torch.tensor([[token]]), past_key_values=out[tiny.CACHE], **at)
        return out.logits

    with torch.no_grad():
        assert torch.equal(third_logits(7, True), third_logits(8, True))
        assert not torch.equal(third_logits(7, False), third_logits(8, False))


def test_outputs_are_ragged_tuples():
    """Asking for hidden states and attentions works; they get shorter layer by layer."""
    lvlm = tiny.shared("llava", "eager")
    inputs = tiny.prompts(lvlm, [[2, "i", 5]])
    with torch.no_grad(), attach(lvlm, Scatter(), TWO):
        out = lvlm(**inputs, output_hidden_states=True, output_attentions=True)
    assert [x.shape[1] for x in out.hidden_states] == [16, 16, 12, 12, 9]
    assert [x.shape[-1] for x in out.attentions] == [16, 12, 12, 9]
