"""Tiny random models and prompts, made in milliseconds without a download."""

from __future__ import annotations

import functools
import inspect

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
)

from btp.models.lvlm import LVLM

VOCAB, PAD, IMAGE, VISION_START, VISION_END = 90, 0, 80, 81, 82
CACHE = "cache" if "cache" in inspect.signature(LlavaForConditionalGeneration.forward).parameters else "past_key_values"
SIDE = 3  # tokens per side of a LLaVA picture
TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": VOCAB - 1,
    "pad_token_id": PAD,
    "tie_word_embeddings": False,
}


def llava(
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    text=LlamaConfig,
    vision_layers: int = 2,
    feature: int = -1,
    siglip: bool = False,
) -> LVLM:
    """CLIP and a decoder of four layers with grouped heads; nine tokens a picture."""
    size = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": vision_layers,
        "num_attention_heads": 2,
        "image_size": 14 * SIDE,
        "patch_size": 14,
    }
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(**size) if siglip else CLIPVisionConfig(**size, projection_dim=16),
        text_config=text(**TEXT),
        image_token_id=IMAGE,
        vision_feature_layer=feature,
        vision_feature_select_strategy="full" if siglip else "default",
        image_seq_length=SIDE * SIDE,
        pad_token_id=PAD,
        tie_word_embeddings=False,
    )
    return _finish(LlavaForConditionalGeneration, config, attention, dtype)


def llava_deep(attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> LVLM:
    """The same with three layers in the tower, of which the projector reads the last but one."""
    return llava(attention, dtype, vision_layers=3, feature=-2)


def llava_siglip(attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> LVLM:
    """The same with a SigLIP tower, which has no class token."""
    return llava(attention, dtype, vision_layers=3, siglip=True)


def llava_qwen(attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> LVLM:
    """The same with a Qwen2 decoder."""
    return llava(attention, dtype, text=Qwen2Config)


def qwen(attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> LVLM:
    """Qwen2.5-VL, which turns positions in three axes."""
    config = Qwen2_5_VLConfig(
        text_config=TEXT | {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}},
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "patch_size": 4,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "window_size": 16,
            "fullatt_block_indexes": [1],
            "out_hidden_size": 32,
            "tokens_per_second": 2,
        },
        image_token_id=IMAGE,
        video_token_id=IMAGE + 5,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=False,
    )
    return _finish(Qwen2_5_VLForConditionalGeneration, config, attention, dtype)


def qwen3(attention: str = "sdpa", dtype: torch.dtype = torch.float32, deepstack: int = 2) -> LVLM:
    """Qwen3-VL, which adds vision features behind its first decoder layers."""
    config = Qwen3VLConfig(
        text_config=TEXT
        | {"head_dim": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}},
        vision_config={
            "depth": 4,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "patch_size": 4,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": list(range(deepstack)),
        },
        image_token_id=IMAGE,
        video_token_id=IMAGE + 5,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=False,
    )
    return _finish(Qwen3VLForConditionalGeneration, config, attention, dtype)


def qwen3_throughout(attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> LVLM:
    """The same with features behind every layer, the last one too."""
    return qwen3(attention, dtype, deepstack=4)


@functools.cache
def shared(family: str, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> LVLM:
    """The same model for every test that leaves it as it was."""
    return (FAMILIES | TOWERS | DEEPSTACK)[family](attention, dtype)


FAMILIES = {"llava": llava, "llava_qwen": llava_qwen, "qwen": qwen}
TOWERS = {"llava": llava, "llava_deep": llava_deep, "llava_siglip": llava_siglip}  # whose vision tower can be cut
DEEPSTACK = {"qwen3": qwen3, "qwen3_throughout": qwen3_throughout}


def _finish(cls, config, attention: str, dtype: torch.dtype) -> LVLM:
    torch.manual_seed(0)
    config._attn_implementation = attention
    model = cls._from_config(config, attn_implementation=attention).eval().to(dtype)
    for weight in model.parameters():
        if weight.dim() > 1:  # wide enough that every token matters
            torch.nn.init.normal_(weight, std=0.12)
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None
    return LVLM(model)


def prompts(lvlm: LVLM, rows: list[list], padding: str = "left", seed: int = 0) -> dict[str, torch.Tensor]:
    """Inputs from rows of ints (text tokens to write) and "i" or (rows, columns) for a picture.

    Qwen pictures take their own size in tokens; LLaVA pictures are square.
    """
    random = torch.Generator().manual_seed(seed)
    is_qwen = hasattr(lvlm.config.vision_config, "spatial_merge_size")
    ids, grids = [], []
    for row in rows:
        line: list[int] = []
        for part in row:
            if isinstance(part, int):
                line += torch.randint(2, 79, (part,), generator=random).tolist()
            elif is_qwen:
                high, wide = part if isinstance(part, tuple) else (SIDE, SIDE)
                grids.append((1, 2 * high, 2 * wide))
                line += [VISION_START] + [IMAGE] * (high * wide) + [VISION_END]
            else:
                grids.append((1, SIDE, SIDE))
                line += [IMAGE] * (SIDE * SIDE)
        ids.append(line)
    S = max(map(len, ids))
    pads = [[PAD] * (S - len(line)) for line in ids]
    left = padding == "left"
    input_ids = torch.tensor([p + r if left else r + p for p, r in zip(pads, ids, strict=True)])
    mask = torch.tensor(
        [[0] * len(p) + [1] * len(r) if left else [1] * len(r) + [0] * len(p) for p, r in zip(pads, ids, strict=True)]
    )
    inputs = {"input_ids": input_ids, "attention_mask": mask}
    if is_qwen:
        inputs["mm_token_type_ids"] = (input_ids == IMAGE).int()
        if grids:
            patches = sum(t * h * w for t, h, w in grids)
            inputs["pixel_values"] = torch.randn(patches, 3 * 2 * 4 * 4, generator=random).to(lvlm.dtype)
            inputs["image_grid_thw"] = torch.tensor(grids)
    elif grids:
        inputs["pixel_values"] = torch.randn(len(grids), 3, 14 * SIDE, 14 * SIDE, generator=random).to(lvlm.dtype)
    return inputs
