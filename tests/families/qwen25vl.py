"""Qwen2.5-VL: as Qwen2-VL, with windows in the tower."""

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from families import kit
from families.qwen2vl import CLIP, PATCH, SIZES, inputs, parts


def build():
    """Windows of two tokens a side in the first layer, none in the second."""
    config, processor = parts(Qwen2_5_VLProcessor)
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "patch_size": PATCH,
        "window_size": 16,
        "fullatt_block_indexes": [1],
        "out_hidden_size": 32,
        "tokens_per_second": 2,
    }
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config, vision_config=vision)), processor


FAMILIES = (kit.Family("qwen25vl", build, SIZES, CLIP, inputs),)
