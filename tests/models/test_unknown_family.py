"""A model that btp has no adapter for: each visual token lies where it lies, or the family is refused by name."""

import copy
from types import SimpleNamespace

import pytest
import tiny
import torch
import yaml
from families import kit
from transformers import AyaVisionConfig, AyaVisionForConditionalGeneration, Cohere2Config, SiglipVisionConfig

from btp.core.schedule import Schedule
from btp.engine.attach import attach
from btp.models.families.adapters import adapter_for, adapters
from btp.models.loading.load import find_adapter
from btp.models.lvlm import LVLM

CONF = kit.CONF / "model"


def test_every_yaml_and_its_class_agree():
    """LVLM(model) is what the yaml of the family names."""
    yamls = [yaml.safe_load(path.read_text()) for path in sorted(CONF.glob("*.yaml"))]
    named = {about["config"]["model_type"]: find_adapter(about["adapter"]) for about in yamls}
    named = {family: adapter for family, adapter in named.items() if issubclass(adapter, LVLM)}  # Backbone is one class
    assert {family: adapter_for(family) or LVLM for family in named} == named
    own = {family for family in adapters() if adapter_for(family) not in named.values()}
    assert own == {"molmo2"}, "no yaml names the class of these, as is right for a family that is refused alone"
    assert adapter_for("llava_of_tomorrow") is adapter_for(None) is None


@pytest.mark.parametrize(
    ("name", "rows"), [("llava_onevision", "video"), ("internvl3", "one row"), ("gemma3", "one row")]
)
def test_a_known_family_brings_its_adapter(name, rows):
    """Without being asked for, and given paths still count."""
    host = kit.loaded(name).host
    found = LVLM(host.model, layers="model.language_model.layers")
    assert type(found) is type(host)
    inputs = kit.batch(name, kit.rows(name)[rows])
    assert torch.equal(found.layout(inputs).coord, host.layout(inputs).coord)
    assert type(copy.copy(found)) is type(found)


def test_joined_patches_are_refused():
    """Aya Vision joins patches of tiles, in the words of a LLaVA; before the model and behind generate()'s encoder."""
    text = tiny.TEXT | {"sliding_window": 64}
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AyaVisionConfig(
        vision_config=SiglipVisionConfig(**size, image_size=56, patch_size=14),
        text_config=Cohere2Config(**text),
        image_token_index=tiny.IMAGE,
        image_token_id=tiny.IMAGE,
        downsample_factor=2,
        vision_feature_layer=-1,
    )
    model = AyaVisionForConditionalGeneration(config).eval()
    lvlm = LVLM(model)
    for tiles in (2, 4, 8):  # eight tiles have as many tokens as two whole grids
        ids = torch.tensor([[5, 6] + [tiny.IMAGE] * (4 * tiles) + [7]])
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": torch.randn(tiles, 3, 56, 56),
        }
        with torch.no_grad():
            model(**inputs)
        named = "AyaVisionForConditionalGeneration.*docs/new_model.md"
        with pytest.raises(ValueError, match=named):
            lvlm.layout(inputs)
        with torch.no_grad(), attach(lvlm, None, Schedule()), pytest.raises(ValueError, match=named):
            lvlm.generate(**inputs, max_new_tokens=2)


def refused(lvlm, message, inputs):
    with pytest.raises(ValueError, match=message):
        lvlm.layout(inputs)


def test_placeholders_must_be_whole_pictures():
    """As many as the pixels are, in every row; a text needs none."""
    lvlm = tiny.llava()
    picture = torch.zeros(1, 3, 42, 42)
    ids = torch.tensor([[5] + [tiny.IMAGE] * 9 + [5] * 10, [5] + [tiny.IMAGE] * 18 + [5]])
    lvlm.layout({"input_ids": ids, "pixel_values": picture.expand(3, -1, -1, -1)})
    refused(lvlm, "makes 27 placeholders for 1 picture", {"input_ids": ids, "pixel_values": picture})
    ids[0, 9], ids[0, 10] = 5, 5
    refused(lvlm, "Row 0 has 8 placeholders, but a view of LlavaFor.* has 9 tokens", {"input_ids": ids})
    assert lvlm.layout({"input_ids": torch.full((2, 5), 7)}).image.max() == -1


def test_features_that_were_encoded_before():
    """Their lengths say what a picture is."""
    lvlm = tiny.llava()
    ids = torch.tensor([[5] + [tiny.IMAGE] * 18 + [5]])
    Output = type("Output", (), {})
    for lengths in ((9, 9), (4, 14), (18,)):
        output = Output()
        output.pooler_output = [torch.zeros(n, 32) for n in lengths]
        inputs = {"input_ids": ids, "mm_encoder_outputs": {"image": output}}
        if lengths == (9, 9):
            lvlm.layout(inputs)
        else:
            refused(lvlm, f"makes {lengths[0]} tokens of a picture, but a view has 9", inputs)


def test_what_is_no_square_grid_is_refused():
    """Videos, sizes, and configs that do not say how large a picture is."""
    lvlm = tiny.llava()
    ids = torch.tensor([[5] + [tiny.IMAGE] * 9 + [5]])
    refused(lvlm, "it brings a video", {"input_ids": ids, "pixel_values_videos": torch.zeros(1, 1, 3, 42, 42)})
    refused(lvlm, "neither one square grid", {"input_ids": ids, "image_sizes": torch.tensor([[42, 42]])})
    lvlm.config.vision_config.patch_size = [14, 14]
    lvlm.layout({"input_ids": ids, "pixel_values": torch.zeros(1, 3, 42, 42)})
    lvlm.config.vision_config.patch_size = None
    refused(lvlm, "its config names no vision_config.patch_size", {"input_ids": ids})
    del lvlm.config.vision_feature_select_strategy
    refused(lvlm, "LlavaForConditionalGeneration packs its visual tokens in a way", {"input_ids": ids})


def test_grids_of_the_inputs_must_fit_the_rows():
    """image_grid_thw: every row ends where a picture ends, and no placeholder is left."""
    lvlm = tiny.qwen()
    inputs = tiny.prompts(lvlm, [[1, (2, 3), 2], [2, (2, 2), 3]])
    lvlm.layout(inputs)
    swapped = inputs | {"image_grid_thw": inputs["image_grid_thw"].flip(0)}
    refused(lvlm, r"rows of the prompt have \[6, 4\] placeholders of kind image, but .* have \[4, 6\] tokens", swapped)
    refused(lvlm, r"have \[6\] tokens in Qwen2_5_VLFor", inputs | {"image_grid_thw": inputs["image_grid_thw"][:1]})
    ids = inputs["input_ids"].clone()
    ids[0, -1] = lvlm.config.video_token_id
    refused(lvlm, "some placeholders belong to no grid", inputs | {"input_ids": ids})
    lvlm.config = SimpleNamespace(image_token_id=tiny.IMAGE, vision_config=SimpleNamespace())
    refused(lvlm, "its config names no vision_config.spatial_merge_size", inputs)
