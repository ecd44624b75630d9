"""What ships of a trained model: its files and half its bytes, and it answers as before, whatever its architecture."""

import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from btp.models.loading.load import load
from experiments.embedded import ship
from tests.embedded.test_measure import save_text
from tests.runner.vision_models import save

CONFIG = {"weights": "pretrained", "dtype": "float32", "attention": "sdpa", "device_map": None}
TEXT = {"adapter": "btp.models.text.TextLM"}
VISION = {"adapter": "btp.models.backbone.Backbone"}


@pytest.mark.parametrize("name", ["pocket_text", "pocket_vim", "pocket_det", "pocket_action"])
def test_a_shipped_model_answers_as_the_trained_one(name, tmp_path, monkeypatch, capsys):
    trained = tmp_path / "work" / name / "model"
    save_text(trained) if name == "pocket_text" else save(name, trained)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ship", name])
    ship.main()
    shipped = tmp_path / ship.CHECKPOINTS / name
    assert "MiB" in capsys.readouterr().out
    assert {f.name for f in trained.iterdir()} <= {f.name for f in shipped.iterdir()}
    weights = load_file(shipped / "model.safetensors")
    assert {w.dtype for w in weights.values() if w.is_floating_point()} == {torch.float16}
    keys = CONFIG | (TEXT if name == "pocket_text" else VISION)
    before, after = (load(keys, folder, torch.device("cpu")).host.model for folder in (trained, shipped))
    assert type(before) is type(after)
    torch.manual_seed(1)
    inputs = {"pixel_values": torch.randn(4, *((16,) if name == "pocket_action" else ()), 3, *size_of(before))}
    if name == "pocket_text":
        inputs = {"input_ids": torch.randint(5, 100, (4, 30))}
    with torch.inference_mode():
        one, other = before(**inputs).logits, after(**inputs).logits
    assert torch.equal(one.argmax(-1), other.argmax(-1))
    assert 0 < (one - other).abs().max() < 0.05 * one.abs().max()


def test_a_tuned_model_ships_under_a_name_of_its_own(tmp_path, monkeypatch):
    store = tmp_path / "store"
    save("pocket_vim", store / "model")
    card = {"format": 1, "pruner": "ssm", "digest": "0", "host": {"name": "pocket_vim"}}
    (store / "trained.yaml").write_text(yaml.safe_dump(card))
    monkeypatch.chdir(tmp_path)
    for name in ("pocket_vim", "unheard_of"):
        monkeypatch.setattr(sys, "argv", ["ship", name, "--trained", str(store)])
        with pytest.raises(SystemExit, match=f"what pocket_vim became .* and not as {name}"):
            ship.main()
    monkeypatch.setattr(sys, "argv", ["ship", "pocket_vim_tuned", "--trained", str(store)])
    ship.main()
    shipped = tmp_path / ship.CHECKPOINTS / "pocket_vim_tuned"
    assert {f.name for f in shipped.iterdir()} == {f.name for f in (store / "model").iterdir()}


def size_of(model):
    side = getattr(model.config, "image_size", 0)
    return side if isinstance(side, list) else (side, side)


def test_nothing_to_ship_says_how_to_train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ship", "pocket_vim"])
    with pytest.raises(SystemExit, match=r"experiments\.embedded\.train pocket_vim"):
        ship.main()
