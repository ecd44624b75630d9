"""Sizes are read off a config by its attributes."""

from types import SimpleNamespace

import pytest
import tiny
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from btp.measure.architecture import Architecture, Encoder, Stack, architecture


def test_llava():
    """Grouped heads, a gated decoder, a plain encoder with a class token that the projector does not get."""
    assert architecture(tiny.llava().config) == Architecture(
        decoder=Stack(layers=4, hidden=32, ffn=48, heads=4, kv_heads=2, head_dim=8, gated=True),
        vocab=tiny.VOCAB,
        vision=Encoder(
            stack=Stack(layers=2, hidden=16, ffn=24, heads=2, kv_heads=2, head_dim=8, gated=False),
            patch_inputs=3 * 14 * 14,
            patches=9,
            class_tokens=1,
        ),
        projector=((16, 32), (32, 32)),
    )


def test_qwen():
    """Gated encoder with windows of two merged tokens per side; four patches become one token."""
    found = architecture(tiny.qwen().config)
    assert found.vision == Encoder(
        stack=Stack(layers=2, hidden=16, ffn=24, heads=2, kv_heads=2, head_dim=8, gated=True),
        patch_inputs=3 * 2 * 4 * 4,
        merge=2,
        window=2,
        full_layers=frozenset({1}),
    )
    assert found.projector == ((64, 64), (64, 32))


def test_language_model():
    """A config without a vision tower is read as a decoder alone; heads default to ungrouped."""
    config = LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4)
    found = architecture(config)
    assert found.decoder == Stack(3, 64, 96, heads=4, kv_heads=4, head_dim=16, gated=True)
    assert found.vision is None
    assert not architecture(config, gated=False).decoder.gated


def test_several_feature_layers_and_the_class_token():
    """The projector reads the features of all named layers; "full" hands it the class token."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=16, intermediate_size=24, num_attention_heads=2),
        text_config=LlamaConfig(hidden_size=32, intermediate_size=48, num_attention_heads=4),
        vision_feature_layer=[-1, -2],
        vision_feature_select_strategy="full",
    )
    found = architecture(config)
    assert found.projector == ((32, 32), (32, 32))
    assert found.vision is not None
    assert found.vision.class_projected


def test_other_families_are_counted():
    """Asked not to be strict, the decoder is read and the rest left to the counter; known families stay as they are."""
    config = tiny.llava().config
    other = SimpleNamespace(model_type="pixel", text_config=config.text_config, vision_config=SimpleNamespace())
    found = architecture(other, strict=False)
    assert found.counted
    assert found.vision is None
    assert found.decoder == architecture(config).decoder
    for family in (tiny.llava(), tiny.qwen()):
        assert architecture(family.config, strict=False) == architecture(family.config)
        assert not architecture(family.config).counted


def test_siglip():
    """No class token."""
    found = architecture(tiny.llava(siglip=True).config)
    assert found.vision is not None
    assert found.vision.class_tokens == 0


def test_messages():
    """A missing size and an unknown tower are refused by name."""
    with pytest.raises(ValueError, match=r"has no hidden_size, so this model's cost .* Build a btp"):
        architecture(SimpleNamespace())
    config = tiny.llava().config
    text = config.text_config
    with pytest.raises(ValueError, match=r"The vision tower is pixtral; architecture\(\) knows how to read clip"):
        architecture(SimpleNamespace(text_config=text, vision_config=SimpleNamespace(model_type="pixtral")))
