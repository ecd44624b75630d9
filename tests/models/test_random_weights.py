"""Every yaml's architecture: as large as the published model, and runnable without a checkpoint."""

import copy
from pathlib import Path

import pytest
import torch
import yaml

from btp.models.loading.load import load, sketch
from btp.models.loading.random_weights import BLOCK, STD, build, describe, empty

pytestmark = pytest.mark.long

CPU = torch.device("cpu")
YAMLS = {p.stem: yaml.safe_load(p.read_text()) for p in Path(__file__).parents[2].glob("conf/model/*.yaml")}
BACKBONE = "btp.models.backbone.Backbone"
REAL = {name: config for name, config in YAMLS.items() if config["hub"] and "vision_config" in config["config"]}
TOWERS = {  # parameters of the published checkpoints of models without a language model
    "deit_small": 22.05e6,
    "dinov2_base": 88.1e6,  # with its linear head
    "videomae_base_k400": 86.5e6,
    "videomae_base_ssv2": 86.4e6,
    "vim_small": 26.0e6,
    "vim_tiny": 7.15e6,
    "vit_base": 86.6e6,
    "yolos_base": 127.7e6,
    "yolos_small": 30.7e6,
    "yolos_tiny": 6.49e6,
}
PUBLISHED = {  # parameters of the checkpoint that the yaml's hub names, as its page counts its files
    "gemma3": 4.30e9,  # gemma-3-4b-it
    "glm46v": 10.29e9,  # GLM-4.6V-Flash
    "idefics3": 8.46e9,  # Idefics3-8B-Llama3
    "internvl3": 7.94e9,  # InternVL3-8B-hf
    "internvl35": 8.53e9,  # InternVL3_5-8B-HF
    "llava15": 7.06e9,  # llava-1.5-7b-hf
    "llava15_13b": 13.35e9,  # llava-1.5-13b-hf
    "llava_next": 7.06e9,  # llava-v1.6-vicuna-7b-hf
    "llava_next_mistral": 7.57e9,  # llava-v1.6-mistral-7b-hf
    "llava_next_video": 7.06e9,  # LLaVA-NeXT-Video-7B-hf
    "llava_onevision": 8.03e9,  # llava-onevision-qwen2-7b-ov-hf
    "qwen2vl": 8.29e9,  # Qwen2-VL-7B-Instruct
    "qwen25vl": 8.29e9,  # Qwen2.5-VL-7B-Instruct
    "qwen3vl": 8.77e9,  # Qwen3-VL-8B-Instruct
    "smolvlm": 2.25e9,  # SmolVLM2-2.2B-Instruct
    "video_llava": 7.37e9,  # Video-LLaVA-7B-hf
}
VISUAL = {  # tokens of the yaml's example, counted by hand
    "gemma3": 256,
    "glm46v": 36 * 36,
    "idefics3": (3 * 4 + 1) * 169,
    "internvl3": (2 * 2 + 1) * 256,
    "internvl35": (2 * 2 + 1) * 256,
    "llava15": 576,
    "llava15_13b": 576,
    "llava_next": 576 + 4 * 576 + 48,  # the whole, four tiles, a newline behind each of their 48 rows
    "llava_next_mistral": 576 + 4 * 576 + 48,
    "llava_next_video": 8 * 144,
    "llava_onevision": 729 + 4 * 729 + 54,
    "qwen2vl": 36 * 36,
    "qwen25vl": 36 * 36,
    "qwen3vl": 32 * 32,
    "smolvlm": (3 * 4 + 1) * 81,
    "video_llava": 8 * 257,  # class tokens too
}


def shrunk(config):
    """The same architecture with two heads, four layers and narrow MLPs; heads and pictures are as large as ever."""
    config = copy.deepcopy(config)
    text, vision = config["text_config"], config["vision_config"]
    width = 64 if "head_dim" in text else 2 * text["hidden_size"] // text["num_attention_heads"]
    text |= {"hidden_size": width, "intermediate_size": 48, "num_hidden_layers": 4}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    heads, layers, own = (
        next(k for k in names if k in vision)
        for names in (
            ("num_attention_heads", "num_heads"),
            ("num_hidden_layers", "depth"),
            ("embed_dim", "hidden_size"),
        )
    )
    narrow = 2 * vision[own] // vision[heads]
    into = "hidden_size" if own == "embed_dim" else "out_hidden_size"
    vision |= {own: narrow, heads: 2, layers: 4} | ({into: width} if into in vision else {})
    vision |= {"intermediate_size": 48} if "intermediate_size" in vision else {}
    for key, value in {"fullatt_block_indexes": [1, 3], "deepstack_visual_indexes": [0, 1, 2]}.items():
        vision |= {key: value} if key in vision else {}
    return config


def test_every_tower_has_its_count():
    mine = {name for name, config in YAMLS.items() if config["adapter"] == BACKBONE and not name.startswith("pocket")}
    assert mine == set(TOWERS)


@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_is_the_published_one(name):
    """Within three percent, and without memory."""
    host = sketch(YAMLS[name], None)
    assert sum(p.numel() for p in host.model.parameters()) == pytest.approx(TOWERS[name], rel=0.03)
    tokens = int(host.layout(host.example(1, **YAMLS[name]["example"])).visual.sum())
    counts = {"videomae": 1568, "yolos": 32 * 54, "dinov2": 256}
    assert tokens == counts.get(name.split("_")[0], 196)


@pytest.mark.parametrize("name", REAL)
def test_the_architecture_is_the_published_one(name):
    """Within two percent, and without memory: modules on the meta device."""
    config = REAL[name]
    model = empty(describe(config["config"]), torch.device("meta"), torch.bfloat16, config["attention"])
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(PUBLISHED[name], rel=0.02)


@pytest.mark.parametrize("name", REAL)
def test_it_is_built_and_runs(name):
    """Small, on the yaml's own example: all tokens where the model puts its pictures, and numbers everywhere."""
    config = REAL[name] | {"weights": "random", "config": shrunk(REAL[name]["config"])}
    loaded = load(config, None, CPU)
    host = loaded.host
    assert loaded.processor is None
    assert host.dtype == torch.bfloat16
    assert {p.dtype for p in host.model.parameters()} == {torch.bfloat16}
    assert not host.model.training
    inputs = host.example(2, 5, **config["example"])
    layout = host.layout(inputs)
    assert layout.visual.sum(1).tolist() == [VISUAL[name]] * 2
    assert inputs["attention_mask"].all()
    assert not layout.visual[:, -5:].any()
    with torch.inference_mode():
        logits = host(**inputs, use_cache=False, logits_to_keep=1).logits
    assert torch.isfinite(logits).all()
    assert logits.std() > 0


def test_weights_are_cheap_but_sound():
    """Matrices repeat one block, but no two rows of one are the same; norms, biases and tables are as always."""
    config = describe(shrunk(REAL["llava15"]["config"]))
    model = build(config, CPU, torch.float32, "sdpa")
    matrix = model.model.language_model.embed_tokens.weight
    assert matrix.numel() > 2 * BLOCK
    assert torch.equal(matrix.flatten()[:BLOCK], matrix.flatten()[BLOCK : 2 * BLOCK])
    assert len(matrix.unique(dim=0)) == len(matrix)
    for weight in model.parameters():
        assert torch.isfinite(weight).all()
        if weight.dim() > 1:
            assert float(weight.std()) == pytest.approx(STD, rel=0.1)
    plain = type(model)(copy.deepcopy(config))
    small = {n: p for n, p in model.named_parameters() if p.dim() < 2 and "class_embedding" not in n}
    assert len(small) > 20
    for name, weight in (*small.items(), *model.named_buffers()):
        assert torch.equal(weight, plain.get_parameter(name) if name in small else plain.get_buffer(name)), name


def test_tied_embeddings_stay_tied():
    model = build(describe(shrunk(REAL["gemma3"]["config"])), CPU, torch.bfloat16, "sdpa")
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


def test_the_same_weights_each_time():
    """Processes of one run build their own, and must agree."""
    config = shrunk(REAL["llava15"]["config"])
    one, two = (build(describe(config), CPU, torch.bfloat16, "sdpa") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_example_inputs_are_the_same_each_time():
    host = load(REAL["llava15"] | {"weights": "random", "config": shrunk(REAL["llava15"]["config"])}, None, CPU).host
    one, two = host.example(2, 7, 336, 336), host.example(2, 7, 336, 336)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert one["pixel_values"].shape == (2, 3, 336, 336)
    with pytest.raises(
        ValueError, match=r"no example inputs of a video: LVLM.example knows square grids. Set model.ad"
    ):
        host.example(1, 7, 336, 336, frames=4)


def test_what_does_not_fit_is_refused_before_it_is_built():
    """The sizes are known from the meta device: 400 layers of a 70B model in float32."""
    config = copy.deepcopy(REAL["llava15"]["config"])
    config["text_config"] |= {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 400}
    with pytest.raises(ValueError, match=r"need 14\d\d\.\d GiB in float32, but cpu has \d+\.\d GiB free.*bfloat16 \(7"):
        build(describe(config), CPU, torch.float32, "sdpa")


@pytest.mark.parametrize("key", ["quantize", "device_map"])
def test_keys_without_effect_are_refused(key):
    value = {"quantize": "4bit", "device_map": "auto"}[key]
    with pytest.raises(ValueError, match=f"model.{key} is {value}, but model.weights is random"):
        load(REAL["llava15"] | {"weights": "random", key: value}, None, CPU)


def test_a_config_of_no_family_is_refused():
    with pytest.raises(ValueError, match=r"model.config describes no model of transformers: .*nothing"):
        load(REAL["llava15"] | {"weights": "random", "config": {"model_type": "nothing"}}, None, CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_nothing_is_copied_over_the_host():
    """On a GPU, the device's peak is the model itself and one block."""
    device = torch.device("cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    config = copy.deepcopy(REAL["llava15"]["config"])
    config["text_config"]["num_hidden_layers"] = 8
    model = build(describe(config), device, torch.bfloat16, "sdpa")
    needed = sum(p.numel() * p.element_size() for p in model.parameters())
    assert torch.cuda.max_memory_allocated() - before < needed + 3 * 4 * BLOCK + 2**26
