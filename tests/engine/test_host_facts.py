"""What the engine relies on in transformers; when one of these fails, the host has changed."""

import inspect

import pytest
import tiny
import torch
from transformers import AttentionInterface
from transformers.models.clip.modeling_clip import CLIPEncoder

from btp.engine.hooks.arguments import Binding


def watch(lvlm, inputs, layer=1, call=None):
    """Arguments with which a layer is called, per forward."""
    got = []
    hook = lvlm.layers[layer].register_forward_pre_hook(lambda m, a, k: got.append((a, k)), with_kwargs=True)
    with torch.no_grad():
        (call or lvlm)(**inputs)
    hook.remove()
    return got


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_layers_get_hidden_first_and_companions_by_name(family):
    """One positional argument; mask, RoPE, positions and cache by keyword; a bare tensor comes back."""
    lvlm = tiny.shared(family)
    args, kwargs = watch(lvlm, tiny.prompts(lvlm, [[2, "i", 3], [1, "i"]]))[0]
    assert len(args) == 1
    assert {"attention_mask", "position_embeddings", "position_ids", tiny.CACHE} <= set(kwargs)
    assert kwargs["attention_mask"].dtype == torch.bool
    assert kwargs["position_embeddings"][0].dim() == 3
    assert "cache_position" not in kwargs


def test_masks_and_rope_are_shared_by_all_layers():
    """Every layer gets the same whole objects, so each must be substituted anew."""
    lvlm = tiny.shared("llava", "eager")
    inputs = tiny.prompts(lvlm, [[2, "i", 3]])
    a, b = (watch(lvlm, inputs, layer)[0][1] for layer in (0, 3))
    assert a["attention_mask"].shape == b["attention_mask"].shape
    assert a["position_embeddings"][0].shape == b["position_embeddings"][0].shape


def test_generate_drops_an_all_ones_mask():
    """generate() passes None where nothing is padded; positions and RoPE may have batch 1."""
    lvlm = tiny.shared("llava")
    seen = []
    hook = lvlm.model.register_forward_pre_hook(lambda m, a, k: seen.append(k.get("attention_mask")), with_kwargs=True)
    inputs = tiny.prompts(lvlm, [[2, "i", 3], [1, "i", 4]])
    with torch.no_grad():
        lvlm.generate(**inputs, max_new_tokens=2, do_sample=False)
    hook.remove()
    assert seen == [None, None]
    _, kwargs = watch(lvlm, inputs)[0]
    assert kwargs["position_embeddings"][0].shape[0] == 1
    assert kwargs["attention_mask"] is None


def test_generate_passes_growing_positions():
    """Positions of new tokens count the unpruned prompt, so RoPE stays right behind a cut."""
    lvlm = tiny.shared("llava")
    inputs = tiny.prompts(lvlm, [[2, "i", 3], [1, "i"]])
    calls = watch(lvlm, inputs, call=lambda **kw: lvlm.generate(**kw, max_new_tokens=3, do_sample=False))
    assert [kw["position_ids"][:, -1].tolist() for _, kw in calls] == [[13, 9], [14, 10], [15, 11]]


def test_an_unregistered_mask_name_loses_the_mask():
    """An attention name without a mask function runs without any mask: why both are registered."""
    lvlm = tiny.llava()
    inputs = tiny.prompts(lvlm, [[2, "i", 3], [1, "i"]])
    AttentionInterface.register("btp_test_lonely", AttentionInterface._global_mapping["sdpa"])
    try:
        lvlm.decoder.config._attn_implementation = "btp_test_lonely"
        assert watch(lvlm, inputs)[0][1]["attention_mask"] is None
    finally:
        AttentionInterface._global_mapping.pop("btp_test_lonely")


def test_gaps_look_like_packed_sequences():
    """Without cache and mask, gapped positions are read as several sequences: why the host never sees
    gaps.
    """
    lvlm = tiny.shared("llava")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        gaps = {"position_ids": torch.tensor([[0, 1, 5, 6]]), "use_cache": False}
        packed = lvlm(input_ids=ids, **gaps).logits
        whole = lvlm(input_ids=ids, attention_mask=torch.ones_like(ids), **gaps).logits
    assert not torch.allclose(packed, whole, atol=1e-3)


def test_vision_layers_get_positionals():
    """CLIP passes its mask by position: why arguments are bound by signature."""
    source = inspect.getsource(CLIPEncoder.forward)
    assert "encoder_layer(\n                hidden_states,\n                attention_mask," in source


def test_binding_follows_the_signature():
    """An argument is exchanged the way it came, by position or by name."""

    class Layer(torch.nn.Module):
        def forward(self, hidden_states, attention_mask=None, scale=1):
            return hidden_states

    binding = Binding(Layer())
    assert binding.first == "hidden_states"
    assert binding.read((1, 2), {"scale": 3}) == {"hidden_states": 1, "attention_mask": 2, "scale": 3}
    changes = {"attention_mask": 9, "scale": 8}
    assert binding.replace((1, 2), {"scale": 3}, changes) == ((1, 9), {"scale": 8})
    assert binding.replace((1,), {"attention_mask": 2}, changes) == ((1,), {"attention_mask": 9, "scale": 8})
