"""The general model finds its modules and its visual tokens."""

import pytest
import tiny
import torch

from btp.core.host import Host
from btp.models.lvlm import LVLM


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_modules_are_found(family):
    """Decoder, layers, vision tower, projector and RoPE by their standard names."""
    lvlm = tiny.FAMILIES[family]()
    assert isinstance(lvlm, Host)
    assert lvlm.num_layers == 4
    assert lvlm.hidden_size == 32
    assert lvlm.layers is lvlm.decoder.layers
    assert len(lvlm.towers["vision"].layers) == 2
    assert None not in (lvlm.projector, lvlm.rotary, lvlm.norm)


def test_paths_may_be_given():
    """Given paths are used; a wrong one names its key."""
    model = tiny.llava().model
    paths = {"decoder": "model.language_model", "layers": "model.language_model.layers"}
    given = LVLM(model, vision="model.vision_tower", **paths)
    assert given.layers is model.model.language_model.layers
    for key in ("vision", "projector", "decoder", "layers"):
        with pytest.raises(ValueError, match=rf"model\.{key} is 'model\.nowhere', but Llava.* has no module there"):
            LVLM(model, **{key: "model.nowhere"})
    with pytest.raises(ValueError, match=r"no ModuleList of decoder layers.*Set model\.layers"):
        LVLM(model, layers="model.language_model")


def test_square_coords():
    """LLaVA: row by row, two pictures in one row, text between, ragged rows padded with -1."""
    lvlm = tiny.llava()
    inputs = tiny.prompts(lvlm, [[2, "i", 1, "i", 2], [1, "i", 3]])
    coords = lvlm.coords(inputs)
    one = [[0, r, c] for r in range(3) for c in range(3)]
    assert coords.tolist() == [one + one, one + [[-1, -1, -1]] * 9]
    image = lvlm.layout(inputs).image
    assert image[0][inputs["input_ids"][0] == tiny.IMAGE].tolist() == [0] * 9 + [1] * 9
    assert image[0, 0] == -1


def test_full_strategy_has_a_token_off_the_grid():
    """With the class token kept, each picture has one token on no grid."""
    lvlm = tiny.llava()
    lvlm.config.vision_feature_select_strategy = "full"
    ids = torch.tensor([[5] + [tiny.IMAGE] * 20 + [5]])
    coord = lvlm.coords({"input_ids": ids})
    assert coord[0, 0].tolist() == coord[0, 10].tolist() == [-1, -1, -1]
    assert coord[0, 11].tolist() == [0, 0, 0]
    assert lvlm.layout({"input_ids": ids}).image[0, [1, 11]].tolist() == [0, 1]


def test_full_strategy_without_a_class_token():
    """A SigLIP tower has none, so that "full" is the patches alone: each picture is a grid, wherever it lies."""
    lvlm = tiny.llava_siglip()
    inputs = tiny.prompts(lvlm, [["i", 2, "i", 1], [4]])
    one = [[0, r, c] for r in range(3) for c in range(3)]
    assert lvlm.coords(inputs)[0].tolist() == one + one
    image = lvlm.layout(inputs).image
    assert image[0][inputs["input_ids"][0] == tiny.IMAGE].tolist() == [0] * 9 + [1] * 9


@pytest.mark.parametrize(
    ("family", "class_tokens", "feature"), [("llava", 1, 1), ("llava_deep", 1, 1), ("llava_siglip", 0, 2)]
)
def test_what_the_projector_reads(family, class_tokens, feature):
    """The layer whose output is read, whatever the config counts from, and what stands in front of the patches."""
    tower = tiny.shared(family).towers["vision"]
    assert (tower.class_tokens, tower.feature) == (class_tokens, feature)
    got = []
    lvlm = tiny.TOWERS[family]()
    read = lvlm.towers["vision"].layers[feature].register_forward_hook(lambda m, a, out: got.append(out))
    projected = lvlm.projector.register_forward_pre_hook(lambda m, a: got.append(a[0]))
    lvlm(**tiny.prompts(lvlm, [[1, "i"]]))
    read.remove()
    projected.remove()
    assert torch.equal(got[0][:, class_tokens:], got[1])


@pytest.mark.parametrize(
    ("asked", "strategy", "feature"),
    [(2, "default", 1), (-3, "default", None), (0, "default", None), ([-1, -2], "default", None), (-1, "full", None)],
)
def test_what_cannot_be_followed(asked, strategy, feature):
    """Layers count from the embeddings; those, several layers, and class tokens among the patches are none."""
    lvlm = tiny.llava()
    lvlm.config.vision_feature_layer, lvlm.config.vision_feature_select_strategy = asked, strategy
    assert LVLM(lvlm.model).towers["vision"].feature == feature


def test_parts_of_a_layer():
    """Blocks and norms inside the layers go by the names of each family."""
    for family in (*tiny.FAMILIES, *tiny.TOWERS):
        for tower in tiny.shared(family).towers.values():
            names = [tower.attention, tower.mlp, tower.attention_norm, tower.mlp_norm]
            assert None not in names, (family, tower.name)
            assert len(set(names)) == 4
            assert all(isinstance(getattr(tower.layers[0], name), torch.nn.Module) for name in names)


def test_picture_grid():
    """Rows and columns of patches, also of pictures that are no squares."""
    assert tiny.shared("llava").picture_grid(torch.zeros(2, 3, 28, 56)) == (2, 4)


def test_packed_coords():
    """Qwen2.5-VL: each picture has its own grid of merged patches."""
    lvlm = tiny.qwen()
    inputs = tiny.prompts(lvlm, [[2, (1, 2), 1, (2, 3)], [1, (3, 1), 3]])
    coords = lvlm.coords(inputs)
    assert coords[0, :2].tolist() == [[0, 0, 0], [0, 0, 1]]
    assert coords[0, 2:8].tolist() == [[0, r, c] for r in range(2) for c in range(3)]
    assert coords[1, :3].tolist() == [[0, r, 0] for r in range(3)]
    assert (coords[1, 3:] == -1).all()
    assert lvlm.layout(inputs).image.max(1).values.tolist() == [1, 0]


def test_video_coords():
    """A video's tokens carry their frame, and stand beside images in one prompt."""
    lvlm = tiny.qwen()
    video = lvlm.config.video_token_id
    ids = torch.tensor([[5, video, video, video, video, 5, tiny.IMAGE, 5]])
    inputs = {
        "input_ids": ids,
        "video_grid_thw": torch.tensor([[2, 2, 4]]),
        "image_grid_thw": torch.tensor([[1, 2, 2]]),
    }
    assert lvlm.coords(inputs).tolist() == [[[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1], [0, 0, 0]]]
    assert lvlm.layout(inputs).image.tolist() == [[-1, 0, 0, 0, 0, -1, 1, -1]]


def test_text_only():
    """No picture, no visual token."""
    for make in tiny.FAMILIES.values():
        lvlm = make()
        inputs = tiny.prompts(lvlm, [[4], [3]])
        assert not lvlm.visual_mask(inputs).any()
        assert lvlm.coords(inputs).shape == (2, 0, 3)


def test_messages():
    """No input_ids, no placeholder id, and an unknown packing are refused."""
    lvlm = tiny.llava()
    with pytest.raises(ValueError, match="The inputs hold no input_ids"):
        lvlm.visual_mask({"inputs_embeds": torch.zeros(1, 2, 32)})
    inputs = tiny.prompts(lvlm, [[1, "i"]])
    with pytest.raises(ValueError, match="packs its visual tokens in a way"):
        lvlm.layout(inputs | {"image_sizes": torch.tensor([[42, 42]])})
    lvlm.config.image_token_id = None
    with pytest.raises(ValueError, match="names no image_token_id"):
        lvlm.visual_mask(inputs)


def test_it_runs():
    """Calling and generating are the model's own."""
    lvlm = tiny.llava()
    inputs = tiny.prompts(lvlm, [[2, "i", 2]])
    assert lvlm(**inputs).logits.shape == (1, 13, tiny.VOCAB)
    assert lvlm.generate(**inputs, max_new_tokens=2, do_sample=False).shape == (1, 15)
    assert lvlm.device.type == "cpu"
