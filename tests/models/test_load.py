"""Loading: where the weights go, in what, and what a checkpoint that cannot be loaded says."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import save_file
from saved import SMALL, copied, edit, settings, whole
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.import_utils import is_flash_attn_2_available

from btp.core.schedule import Schedule, Stage
from btp.engine.attach import attach
from btp.models.loading.checkpoint import find_checkpoint
from btp.models.loading.load import load
from btp.models.loading.weight_memory import stored_bytes
from btp.models.lvlm import LVLM
from btp.pruners.random import Random

__all__ = ["copied", "whole"]  # fixtures
CPU = torch.device("cpu")
SPLIT = {
    "model.vision_tower": "cpu",
    "model.multi_modal_projector": "disk",
    "model.language_model.embed_tokens": "cpu",
    "model.language_model.layers.0": "cpu",
    "model.language_model.layers.1": "disk",
    "model.language_model.layers.2": "disk",
    "model.language_model.norm": "cpu",
    "model.language_model.rotary_emb": "cpu",
    "lm_head": "cpu",
}
MODELING = """
from transformers import LlavaConfig, LlavaForConditionalGeneration
class OwnConfig(LlavaConfig):
    pass
class OwnModel(LlavaForConditionalGeneration):
    config_class = OwnConfig
"""


class Odd(LVLM):
    """An adapter of somebody's own."""


def loaded(folder, **keys):
    config = settings(folder, **keys)
    return load(config, find_checkpoint(config), CPU)


def answers(host, stages=()):
    inputs = host.example(2, 6, 24, 24)
    with attach(host, Random(seed=0, salt="none") if stages else None, Schedule(tuple(stages))), torch.inference_mode():
        return host.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)


# where, and in what


@pytest.mark.parametrize(("dtype", "attention"), [("float32", "sdpa"), ("bfloat16", "eager"), ("float16", "sdpa")])
def test_dtype_and_attention_are_as_asked(whole, dtype, attention):
    host = loaded(whole, dtype=dtype, attention=attention).host
    assert {str(p.dtype) for p in host.model.parameters()} == {f"torch.{dtype}"}
    assert host.config.get_text_config()._attn_implementation == attention
    assert not host.model.training


@pytest.mark.parametrize("where", [{"": "cpu"}, "cpu", "auto", SPLIT])
def test_a_spread_model_answers_as_one_in_one_place(whole, where):
    """Pruned too: layers whose weights are read from disk are pruned like others."""
    plain, spread = loaded(whole).host, loaded(whole, device_map=where).host
    assert spread.device == CPU
    if where is SPLIT:
        assert {p.device.type for p in spread.model.parameters()} == {"cpu", "meta"}
    for stages in ((), [Stage("llm.layer.1", 4), Stage("llm.layer.2", 2)]):
        assert torch.equal(answers(plain, stages), answers(spread, stages))


@pytest.mark.parametrize("where", ["nowhere", {"": "nowhere"}, 1.5])
def test_a_device_that_is_none_is_refused(whole, where):
    with pytest.raises(ValueError, match=r"model.device_map is .*Set model.device_map to null, auto, balanced"):
        loaded(whole, device_map=where)


def test_an_adapter_is_found_by_its_path(whole):
    assert type(loaded(whole, adapter=f"{__name__}.Odd").host).__name__ == "Odd"
    for path, message in {
        "btp.models.nowhere.Odd": "cannot be imported: No module named",
        "btp.models.lvlm.Odd": "cannot be imported: module 'btp.models.lvlm' has no attribute 'Odd'",
        "Odd": "cannot be imported: Empty module name",
        "btp.models.families.grids.square": "is not a subclass of btp.models.lvlm.LVLM",
    }.items():
        with pytest.raises(ValueError, match=f"model.adapter is {path}, .*{message}"):
            loaded(whole, adapter=path)


def test_processor_arguments_replace_the_checkpoints(whole):
    assert loaded(whole).processor.image_processor.do_normalize
    assert not loaded(whole, processor={"do_normalize": False}).processor.image_processor.do_normalize
    assert loaded(whole).processor.tokenizer.padding_side == "left"
    with pytest.raises(ValueError, match=r"model.processor.do_normalise is set, but LlavaProcessor knows no do_norm"):
        loaded(whole, processor={"do_normalise": False})


# quantised


def test_quantising_names_what_is_missing(whole, copied):
    with pytest.raises(ValueError, match=r"model.quantize is '2bit'. Choose from: null, 8bit, 4bit"):
        loaded(whole, quantize="2bit")
    edit(copied / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ValueError, match=r"is quantised already \(gptq\). Set model.quantize=null"):
        loaded(copied, quantize="4bit")


def test_quantising_needs_bitsandbytes(whole):
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match=r"needs bitsandbytes, and it is not installed. Install it \(pip install"):
            loaded(whole, quantize="8bit")
    else:
        config = settings(whole, quantize="8bit")
        with pytest.raises(ValueError, match="bitsandbytes cannot compute on meta, only on"):
            load(config, whole, torch.device("meta"))


@pytest.mark.parametrize("kind", ["8bit", "4bit"])
def test_a_quantised_model_is_pruned(whole, kind):
    pytest.importorskip("bitsandbytes")
    host = loaded(whole, quantize=kind).host
    matrix = host.layers[0].mlp.up_proj.weight
    assert matrix.dtype in (torch.int8, torch.uint8)
    assert host.model.lm_head.weight.dtype == torch.float32
    assert answers(host, [Stage("llm.layer.1", 3)]).shape == (2, 9 + 6 + 4)


def test_torchao_quantises_weights_alone(whole):
    """On a CPU too; where it is not installed, it is named."""
    if importlib.util.find_spec("torchao") is None:
        with pytest.raises(ValueError, match=r"needs torchao, and it is not installed. Install it \(pip install"):
            loaded(whole, quantize="torchao_int8")
        return
    host = loaded(whole, quantize="torchao_int8").host
    assert "torchao" in type(host.layers[0].mlp.up_proj.weight).__module__
    assert host.model.lm_head.weight.dtype == torch.float32
    assert answers(host, [Stage("llm.layer.1", 3)]).shape == (2, 9 + 6 + 4)


def test_flash_attention_needs_its_package(whole):
    """And a GPU: with neither, the message says what does without."""
    if is_flash_attn_2_available():
        pytest.skip("flash-attn is here")
    with pytest.raises(ValueError, match=r"needs the package flash-attn and a GPU.*set model\.attention=sdpa"):
        loaded(whole, attention="flash_attention_2")


# broken


def test_a_missing_shard_is_named(copied):
    lost = sorted(copied.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(ValueError, match=rf"index.json names \d files with weights, but 1 of them is not.*{lost.name}"):
        loaded(copied)


def test_a_broken_download_is_named(copied):
    shard = sorted(copied.glob("*.safetensors"))[0]
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    with pytest.raises(
        ValueError, match=rf"{shard.name} has \d+ bytes, but its head speaks of {len(content)}: the dow"
    ):
        loaded(copied)
    shard.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n")
    with pytest.raises(ValueError, match=rf"{shard.name} is not a file of safetensors.*may be a git-lfs pointer"):
        loaded(copied)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"config.json cannot be read: .*Download it again"),
        ("[]", r"config.json holds no JSON object"),
        ("{}", r"config.json names no model_type"),
    ],
)
def test_a_corrupt_config_is_named(copied, text, message):
    (copied / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        loaded(copied)


@pytest.mark.parametrize(("key", "value"), [("num_hidden_layers", "8"), ("hidden_size", None), ("vocab_size", [1])])
def test_a_value_that_its_config_class_refuses_is_named(copied, key, value):
    """And no processor is blamed, which reads the same file."""
    text = json.loads((copied / "config.json").read_text())["text_config"]
    edit(copied / "config.json", text_config=text | {key: value})
    with pytest.raises(ValueError, match=rf"config.json cannot be read as the config of a \w+ model: .*{key}"):
        loaded(copied)


def test_a_corrupt_index_is_named(copied):
    (copied / "model.safetensors.index.json").write_text("nothing")
    with pytest.raises(ValueError, match=r"model.safetensors.index.json cannot be read"):
        loaded(copied)


def test_a_file_is_no_folder(whole):
    with pytest.raises(ValueError, match=r"config.json, which is a file. Set model.path to the folder"):
        loaded(whole / "config.json")


def test_lost_weights_are_not_made_up(copied):
    """transformers would fill them with noise."""
    config = json.loads((copied / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 4
    edit(copied / "config.json", **config | {"transformers_version": "99.1"})
    with pytest.raises(
        ValueError, match=r"lacks 9 of the model's weights, such as .*layers.3.*saved by transformers 99"
    ):
        loaded(copied)


def test_weights_that_nothing_reads_are_told_of(copied):
    config = json.loads((copied / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 2
    edit(copied / "config.json", **config)
    with pytest.warns(UserWarning, match=r"holds 9 weights that the model does not use, such as .*layers.2"):
        loaded(copied)


def test_other_sizes_are_refused(copied):
    config = json.loads((copied / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 64
    edit(copied / "config.json", **config)
    with pytest.raises(ValueError, match="cannot be loaded as a vision-language model"):
        loaded(copied)


# of another kind


def test_a_family_from_the_future_names_both_versions(copied):
    edit(copied / "config.json", model_type="llava_of_tomorrow", transformers_version="99.1")
    with pytest.raises(
        ValueError, match=r"family llava_of_tomorrow, which transformers 5.* by transformers 99.1, and 5"
    ):
        loaded(copied)
    edit(copied / "config.json", transformers_version="4.1")
    with pytest.raises(ValueError, match=r"does not know. Set model.path to a family that docs/models.md lists"):
        loaded(copied)


def test_a_text_model_is_refused(whole, tmp_path):
    LlamaForCausalLM(LlamaConfig(vocab_size=90, **SMALL)).save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match=r"of the family llama, which answers no questions on pictures"):
        loaded(tmp_path / "text")


def test_the_format_of_the_authors_code_is_refused(copied):
    edit(copied / "config.json", architectures=["LlavaLlamaForCausalLM"])
    with pytest.raises(ValueError, match=r"class LlavaLlamaForCausalLM, which transformers .*often ends in -hf"):
        loaded(copied)


def test_code_of_a_checkpoint_runs_only_when_trusted(whole, copied, monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    for shard in copied.glob("model*"):
        shard.unlink()
    save_file(loaded(whole).host.model.state_dict(), copied / "model.safetensors", {"format": "pt"})
    (copied / "modeling_own.py").write_text(MODELING)
    own = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForImageTextToText": "modeling_own.OwnModel"}
    edit(copied / "config.json", architectures=["OwnModel"], auto_map=own)
    with pytest.raises(
        ValueError, match=r"Python code of its own \(modeling_own.py\).*model.trust_remote_code=true if"
    ):
        loaded(copied)
    host = loaded(copied, trust_remote_code=True).host
    assert type(host.model).__name__ == "OwnModel"
    assert answers(host, [Stage("llm.layer.1", 3)]).shape == (2, 19)


def test_code_of_a_processor_runs_only_when_trusted(copied):
    edit(copied / "processor_config.json", processor_class="Own", auto_map={"AutoProcessor": "own.Own"})
    with pytest.raises(ValueError, match=r"brings Python code of its own, .*model.trust_remote_code=true"):
        loaded(copied)


def test_a_processor_is_needed_whole(copied):
    (copied / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"no chat template, so no prompt can be built. Add its chat_template.jinja"):
        loaded(copied)
    (copied / "processor_config.json").unlink()
    with pytest.raises(
        ValueError, match=r"no (image_processor|processor that can be read).*Copy the small files of the"
    ):
        loaded(copied)
    for file in copied.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"has no processor that can be read: .*Copy the small files of the original"):
        loaded(copied)


# too large


@pytest.mark.parametrize(("dtype", "bytes_each"), [("float32", 4), ("bfloat16", 2)])
def test_memory_is_known_from_the_heads_of_files(whole, dtype, bytes_each):
    host = loaded(whole, dtype=dtype).host
    count = sum(p.numel() for p in host.model.parameters())
    assert stored_bytes(whole, getattr(torch, dtype)) == count * bytes_each
    matrices = sum(
        p.numel() for n, p in host.model.named_parameters() if p.dim() == 2 and "embed" not in n and "lm_head" not in n
    )
    small = stored_bytes(whole, getattr(torch, dtype), "8bit")
    assert small == count * bytes_each - matrices * (bytes_each - 1)


def test_too_little_memory_is_refused_before_loading(copied):
    """A file with a hole in it: 8 TiB that take no disk."""
    for shard in copied.glob("model*"):
        shard.unlink()
    size = 8 * 2**40
    head = json.dumps({"lm_head.weight": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
    with (copied / "model.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + size)
    with pytest.raises(
        ValueError, match=r"need 16384.0 GiB in float32, but cpu has \d+\.\d GiB free.*device_map=auto; "
    ):
        loaded(copied)
    with pytest.raises(
        ValueError, match=r"need 8192.0 GiB in bfloat16.*choose: .*model.quantize=8bit or 4bit; a small"
    ):
        loaded(copied, dtype="bfloat16")


def test_a_package_that_a_processor_needs_is_named(copied):
    for package in ("num2words", "torchvision"):
        if importlib.util.find_spec(package):
            pytest.skip(f"{package} is installed")
    about = json.loads((copied / "processor_config.json").read_text())
    video = {"video_processor_type": "SmolVLMVideoProcessor"}
    edit(copied / "processor_config.json", **about | {"processor_class": "SmolVLMProcessor", "video_processor": video})
    with pytest.raises(ValueError, match=r"needs a package that is not installed: .*(num2words|[Tt]orchvision)"):
        loaded(copied)
