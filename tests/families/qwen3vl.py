"""Qwen3-VL: vision features behind the first decoder layers too, and videos whose frames have text between them."""

from functools import partial

from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from families import kit
from families.qwen2vl import CLIP, PATCH, SIZES, inputs, parts


def build():
    """Features behind the first two of four decoder layers."""
    config, processor = parts(Qwen3VLProcessor)
    config["text_config"] |= {"head_dim": 8}
    vision = {
        "depth": 3,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "patch_size": PATCH,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
    }
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config, vision_config=vision)), processor


def second(frame):
    """The timestamp in front of a frame."""
    return f"<{frame + 0.5:.1f} seconds>"


FAMILIES = (kit.Family("qwen3vl", build, SIZES, CLIP, partial(inputs, frame=second)),)
