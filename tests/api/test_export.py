"""The plug-in for vLLM: what of it can be held without vLLM is held, and the file says what is not."""

import importlib.util
from pathlib import Path

import pytest
import torch
from families import kit
from transformers import AutoModelForImageTextToText

import btp

POCKET = Path(btp.__file__).parent / "models/checkpoints/pocket_mini"


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(POCKET).eval()


def imported(path):
    """The file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("divprune", ()),
        ("random", ("pruner.schedule=[{site: llm.input, keep: fit, positions: renumber}]",)),
    ],
)
def test_its_choice_is_the_engines(model, tmp_path, method, more):
    """On the same picture the file keeps what the engine keeps at llm.input."""
    path = btp.export(model, method, tmp_path / "plugin.py", budget=0.3, overrides=more)
    plugin = imported(path)
    assert (plugin.TOTAL, plugin.KEEP) == (144, 43)
    pixels = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1, *[model.config.image_token_index] * 144, 5, 6]])
    with torch.inference_mode():
        features = model.model.get_image_features(pixels).pooler_output[0]
        with btp.attach(model, method, budget=0.3, overrides=more) as trace:
            model(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids))
    assert plugin.choose(features).tolist() == trace[0].stages[0].kept[0]


def test_its_prompt_and_what_it_says_of_itself(model, tmp_path):
    """A placeholder a picture, also of two that touch; untested parts are named; vLLM is asked for at the end alone."""
    path = btp.export(model, "divprune", tmp_path / "plugin.py", budget=0.3)
    plugin = imported(path)
    assert plugin.one_each([1, *[4] * 144, 7, *[4] * 288, 8], 4) == [1, 4, 7, 4, 4, 8]
    assert "Not tested" in plugin.__doc__
    assert "plugin:register" in plugin.__doc__
    if importlib.util.find_spec("vllm") is None:
        with pytest.raises(ModuleNotFoundError, match="vllm"):
            plugin.register()


@pytest.mark.parametrize(
    ("method", "more", "said"),
    [
        ("fastv", (), "fastv decides at llm.layer.1, but a plug-in for vLLM chooses once, at llm.input"),
        ("divprune", ("pruner.schedule.0.positions=original",), "keeps the positions that tokens had"),
        ("attention", ("pruner.schedule=[{site: llm.layer.2, keep: fit}]",), "chooses once, at llm.input"),
    ],
)
def test_what_it_cannot_do(model, tmp_path, method, more, said):
    with pytest.raises(ValueError, match=said):
        btp.export(model, method, tmp_path / "plugin.py", budget=0.3, overrides=more)
    assert not list(tmp_path.iterdir())


def test_other_families(tmp_path):
    with pytest.raises(ValueError, match=r"for llava models .* and this one is qwen2_5_vl"):
        btp.export(kit.loaded("qwen25vl").host, "divprune", tmp_path / "plugin.py")


@pytest.mark.parametrize("name", ["plugin.txt", "a b.py", "none/plugin.py", ""])
def test_a_file_that_python_cannot_import_is_refused(model, tmp_path, name):
    with pytest.raises(ValueError, match=r"is no place for a plug-in. Name a module, NAME\.py, in a folder"):
        btp.export(model, "divprune", tmp_path / name)
