"""An adapter of peft as model.path: merged into its model, or refused by what to do."""

import importlib.util
import json
import sys
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved import settings, whole

from btp.models.loading import peft_folder
from btp.models.loading.checkpoint import find_checkpoint
from btp.models.loading.load import load
from btp.models.loading.weight_memory import stored_bytes
from btp.runner.identity import checkpoint

__all__ = ["whole"]  # fixtures
CPU = torch.device("cpu")


@pytest.fixture
def adapter(whole, tmp_path):
    """The folder of an adapter of the model in `whole`."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    about = {"peft_type": "LORA", "base_model_name_or_path": str(whole)}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    save_file({"bias": torch.full((1,), 2.0)}, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture
def installed(monkeypatch):
    """A peft whose adapters raise one weight; the real one, with a real LoRA, is tried below."""

    class PeftModel:
        def __init__(self, model, folder):
            self.model, self.bias = model, load_file(folder / "adapter_model.safetensors")["bias"]

        @classmethod
        def from_pretrained(cls, model, folder):
            return cls(model, folder)

        def merge_and_unload(self):
            with torch.no_grad():
                self.model.lm_head.weight += self.bias
            return self.model

    module = ModuleType("peft")
    module.PeftModel = PeftModel
    monkeypatch.setitem(sys.modules, "peft", module)
    monkeypatch.setattr(peft_folder.importlib.util, "find_spec", lambda name: name)


@pytest.fixture
def missing(monkeypatch):
    """No peft."""
    real = importlib.util.find_spec
    monkeypatch.setattr(peft_folder.importlib.util, "find_spec", lambda name: None if name == "peft" else real(name))


def refused(folder, message):
    with pytest.raises(ValueError, match=message):
        find_checkpoint(settings(folder))


def test_it_is_merged_as_it_is_loaded(whole, adapter, installed):
    """Config, processor and weights come from its model; nothing of peft is left."""
    config = settings(adapter)
    found = load(config, find_checkpoint(config), CPU)
    plain = load(settings(whole), whole, CPU)
    assert type(found.host.model) is type(plain.host.model)
    assert torch.equal(found.host.model.lm_head.weight, plain.host.model.lm_head.weight + 2)
    assert found.processor.chat_template == plain.processor.chat_template
    assert stored_bytes(adapter, torch.float32) == stored_bytes(whole, torch.float32) + 4
    random = settings(adapter, weights="random")
    assert load(random, find_checkpoint(random), CPU).host.num_layers == plain.host.num_layers


def test_its_name_is_made_of_both(whole, adapter, installed):
    """Another adapter, or another model, is another result."""
    first = checkpoint(adapter)
    assert first != checkpoint(whole)
    save_file({"bias": torch.full((1,), 3.0)}, adapter / "adapter_model.safetensors")
    assert checkpoint(adapter) != first


def test_without_peft_it_says_what_to_do(whole, adapter, missing):
    """Install it, or merge once; beside a config.json as trainers leave it too."""
    refused(adapter, r"holds an adapter .* of the model .*pip install peft.*merge_and_unload")
    (adapter / "config.json").write_text((whole / "config.json").read_text())
    refused(adapter, "pip install peft")


def test_broken_adapters(whole, adapter, installed, tmp_path, monkeypatch):
    """What is missing is named."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    file = adapter / "adapter_config.json"

    def about(**keys):
        file.write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(whole)} | keys))

    about(base_model_name_or_path="somebody/llava")
    refused(adapter, "neither a folder here nor in the local hub cache. Download it .`hf download somebody/llava`")
    about(base_model_name_or_path=None)
    refused(adapter, "names no base_model_name_or_path")
    about(peft_type="PROMPT_TUNING", num_virtual_tokens=3)
    refused(adapter, "adapter of type PROMPT_TUNING, which puts learned tokens")
    file.write_text("{")
    refused(adapter, r"adapter_config.json cannot be read")
    file.write_text("[]")
    refused(adapter, "holds no JSON object")
    about()
    (adapter / "adapter_model.safetensors").unlink()
    refused(adapter, "holds adapter_config.json but no weights")


def test_an_adapter_that_does_not_fit(adapter, installed, monkeypatch):
    """What peft says is handed on, and parts that it would only warn of are an error."""
    import warnings

    def fails(model, folder):
        warnings.warn("Found missing adapter keys while loading the checkpoint", stacklevel=1)

    monkeypatch.setattr(sys.modules["peft"].PeftModel, "from_pretrained", fails)
    config = settings(adapter)
    with pytest.raises(ValueError, match="cannot be merged into its model: Found missing adapter keys"):
        load(config, find_checkpoint(config), CPU)


def test_a_lora_of_peft(whole, tmp_path):
    """The real library, where it is installed."""
    peft = pytest.importorskip("peft")
    plain = load(settings(whole), whole, CPU).host
    inputs = plain.example(1, 4, 24, 24)
    with torch.no_grad():
        before = plain(**inputs).logits
    adapted = peft.get_peft_model(
        plain.model, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    ).eval()
    adapted.save_pretrained(tmp_path / "lora")
    config = settings(tmp_path / "lora")
    merged = load(config, find_checkpoint(config), CPU).host
    with torch.no_grad():
        torch.testing.assert_close(merged(**inputs).logits, adapted(**inputs).logits, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(merged(**inputs).logits, before, atol=1e-3)
