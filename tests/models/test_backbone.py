"""Vision models without a language model: which of their rows are patches, and what reads them."""

import json

import pytest
import torch
from backbones import CLIP, MODELS, PICTURE, pictures, shared
from transformers import BeitConfig, BeitForImageClassification, VideoMAEConfig, VideoMAEForVideoClassification

from btp.core.host import Host
from btp.models.backbone import Backbone
from btp.models.loading.load import find_checkpoint, load, sketch

KEYS = {
    "name": "tiny",
    "path": None,
    "hub": None,
    "revision": None,
    "weights": "pretrained",
    "adapter": "btp.models.backbone.Backbone",
    "dtype": "float32",
    "attention": "sdpa",
    "download": False,
    "config": {},
}
ROWS = {
    "vit": (10, [0], "patches", "classify"),
    "deit": (11, [0, 1], "patches", "classify"),
    "dinov2": (10, [0], "patches", "classify"),
    "videomae": (16, [], "tubes", "classify"),
    "yolos": (16, [0, 13, 14, 15], "patches", "detect"),
    "yolos_mid": (16, [0, 13, 14, 15], "patches", "detect"),
    "vim": (10, [4], "patches", "classify"),
    "plainmamba": (9, [], "patches", "classify"),
    "plainmamba_own": (9, [], "patches", "classify"),
}


@pytest.mark.parametrize("family", MODELS)
def test_rows_that_are_no_patches(family):
    host = shared(family)
    rows, fixed, unit, read = ROWS[family]
    assert isinstance(host, Host)
    assert (host.unit, host.read, host.num_layers, host.decoder) == (unit, read, 0, None)
    seen = []
    hook = host.layers[0].register_forward_pre_hook(lambda module, args, kwargs: seen.append(args[0]), with_kwargs=True)
    with torch.no_grad():
        host(**pictures(host))
    hook.remove()
    layout = host.layout(pictures(host))
    assert layout.visual.shape == (2, rows) == seen[0].shape[:2]
    assert (~layout.visual[0]).nonzero().flatten().tolist() == fixed == list(host.towers["vision"].fixed(rows))
    assert (layout.coord[~layout.visual] == -1).all()
    assert torch.equal(layout.coord[0][layout.visual[0]], host.coords(pictures(host))[0])


def test_where_patches_and_tubes_lie():
    assert shared("yolos").coords(pictures(shared("yolos")))[0].tolist() == [
        [0, row, column] for row in range(3) for column in range(4)
    ]
    clip = shared("videomae")
    assert clip.picture_grid(pictures(clip)["pixel_values"]) == (4, 2, 2)
    assert clip.coords(pictures(clip))[1].tolist() == [
        [frame, row, column] for frame in range(4) for row in range(2) for column in range(2)
    ]


@pytest.mark.parametrize("family", ["vit", "videomae", "yolos", "vim", "plainmamba"])
def test_a_saved_model_is_loaded_by_its_own_class(family, tmp_path):
    MODELS[family]().save_pretrained(tmp_path)
    kind = {"videomae": "VideoMAEImageProcessor", "yolos": "YolosImageProcessor"}.get(family, "ViTImageProcessor")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": kind}))
    config = KEYS | {"path": str(tmp_path)}
    found = load(config, find_checkpoint(config), torch.device("cpu"))
    assert isinstance(found.host, Backbone)
    assert type(found.host.model) is type(shared(family).model)
    assert not found.host.model.training
    assert found.processor is not None


@pytest.mark.parametrize("family", ["vit", "videomae", "yolos", "vim", "plainmamba"])
def test_random_weights_and_a_sketch(family):
    about = {k: v for k, v in shared(family).config.to_diff_dict().items() if k != "dtype"}
    config = KEYS | {"weights": "random", "config": about | {"model_type": shared(family).config.model_type}}
    found = load(config, None, torch.device("cpu")).host
    outline = sketch(config, None)
    assert next(iter(outline.model.parameters())).device.type == "meta"
    assert outline.device.type == "cpu"
    with torch.no_grad():
        assert found(**found.example(2)).logits.isfinite().all()


def test_what_cannot_be_followed_is_refused(tmp_path):
    beit = BeitForImageClassification(BeitConfig(**PICTURE))
    with pytest.raises(ValueError, match=r"no vision model whose tokens can be followed\. There are: vit, deit, yolos"):
        Backbone(beit)
    with pytest.raises(ValueError, match="use_mean_pooling: true"):
        Backbone(VideoMAEForVideoClassification(VideoMAEConfig(**CLIP | {"use_mean_pooling": False})))
    beit.save_pretrained(tmp_path)
    config = KEYS | {"path": str(tmp_path)}
    with pytest.raises(ValueError, match="is of the family beit, whose tokens cannot be followed"):
        load(config, find_checkpoint(config), torch.device("cpu"))
    MODELS["vit"]().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no picture processor that can be read"):
        load(config, find_checkpoint(config), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"model\.quantize is 8bit, but vision models"):
        load(config | {"quantize": "8bit"}, find_checkpoint(config), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"takes pictures\. Remove model\.example\.frames"):
        shared("vit").example(1, frames=3)
    with pytest.raises(ValueError, match="hold no pixel_values"):
        shared("vit").layout({})
