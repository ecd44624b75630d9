"""Published checkpoints of state space models become folders that runs load."""

import argparse
import pickle

import pytest
import torch
from backbones import MODELS, SCAN

from btp.models.backbone import Backbone
from btp.models.convert import convert, main
from btp.models.loading.load import find_checkpoint, load
from btp.models.vim import VimConfig, VimForImageClassification

KEYS = {"hub": None, "revision": None, "weights": "pretrained", "dtype": "float32", "attention": "sdpa", "name": "vim"}
KEYS |= {"adapter": "btp.models.backbone.Backbone", "download": False, "config": {}}


def lively(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def stride_4():
    return VimForImageClassification(VimConfig(**SCAN, patch_stride=4))


@pytest.mark.parametrize(
    "make", [MODELS["vim"], stride_4, MODELS["plainmamba"]], ids=["vim", "vim, stride", "plainmamba"]
)
def test_what_comes_out_is_the_model(make, tmp_path, capsys):
    """With the settings of its training beside it, as the files have them."""
    model = lively(make())
    weights = model.state_dict()
    if make is MODELS["plainmamba"]:
        named = {
            k.replace("head.", "head.fc.") if k.startswith("head.") else f"backbone.{k}": x for k, x in weights.items()
        }
        saved = {"state_dict": named, "meta": {"epoch": 300}}
    else:
        saved = {"model": weights, "args": argparse.Namespace(lr=0.1), "epoch": 1}
    torch.save(saved, tmp_path / "file.pth")
    main([str(tmp_path / "file.pth"), str(tmp_path / "out"), "--image-size", "24"])
    assert "is ready: model.path=" in capsys.readouterr().out
    config = KEYS | {"path": str(tmp_path / "out")}
    found = load(config, find_checkpoint(config), torch.device("cpu"))
    assert isinstance(found.host, Backbone)
    pixels = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        assert torch.equal(found.host(pixel_values=pixels).logits, model(pixels).logits)
    assert not list((tmp_path / "out").glob("*.bin"))
    assert found.host.layout({"pixel_values": pixels}).visual.shape[1] == len(weights["pos_embed"][0])


class Harmful:
    def __reduce__(self):
        return (print, ("executed",))


def test_what_is_refused(tmp_path, capsys):
    file, out = tmp_path / "file.pth", tmp_path / "out"
    file.write_bytes(pickle.dumps({"model": Harmful()}))
    with pytest.raises(ValueError, match="cannot be read as tensors and settings alone"):
        convert(file, out)
    assert "executed" not in capsys.readouterr().out
    torch.save({"model": {"rope.freqs": torch.ones(2)}}, file)
    with pytest.raises(ValueError, match="holds neither a Vim with a class token nor a PlainMamba"):
        convert(file, out)
    torch.save([1], file)
    with pytest.raises(ValueError, match="holds no table of tensors"):
        convert(file, out)
    weights = MODELS["vim"]().state_dict()
    torch.save({"model": weights | {"rope.freqs_cos": torch.ones(2)}}, file)
    with pytest.raises(ValueError, match=r"holds rope\.freqs_cos, which the model has no place for"):
        convert(file, out, 24)
    with pytest.raises(ValueError, match="do not lie on a picture of 200"):
        convert(file, out, 200)
    torch.save({"model": weights | {"norm_f.weight": torch.ones(3)}}, file)
    with pytest.raises(ValueError, match=r"do not go together: .*norm_f\.weight"):
        convert(file, out, 24)
    del weights["norm_f.weight"]
    torch.save({"model": weights}, file)
    with pytest.raises(ValueError, match=r"lacks norm_f\.weight"):
        convert(file, out, 24)
    torch.save({"model": {"cls_token": torch.ones(1)}}, file)
    with pytest.raises(ValueError, match=r"lacks patch_embed\.proj\.weight, by which the model is built"):
        convert(file, out, 24)
    assert [path.name for path in tmp_path.iterdir()] == ["file.pth"]
    with pytest.raises(SystemExit, match=r"error: .*none\.pth"):
        main([str(tmp_path / "none.pth"), str(out)])
    out.mkdir()
    with pytest.raises(ValueError, match="is there already"):
        convert(file, out)
    with pytest.raises(SystemExit, match="is there already"):
        main([str(file), str(out)])
