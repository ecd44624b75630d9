"""Tiny vision models without a language model, with random weights far from zero; made in milliseconds."""

from __future__ import annotations

import functools

import torch
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    ViTConfig,
    ViTForImageClassification,
    YolosConfig,
    YolosForObjectDetection,
)

from btp.models.backbone import Backbone
from btp.models.plainmamba import PlainMambaConfig, PlainMambaForImageClassification
from btp.models.vim import VimConfig, VimForImageClassification

BLOCK = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 4, "num_labels": 5}
PICTURE = BLOCK | {"image_size": 24, "patch_size": 8}
CLIP = BLOCK | {"image_size": 16, "patch_size": 8, "num_frames": 8, "use_mean_pooling": True}
BOXES = PICTURE | {"image_size": [24, 32], "num_detection_tokens": 3}
SCAN = {"image_size": 24, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 4, "state_size": 4, "num_labels": 5}
PATHS = {"conv_size": 3, "dwconv_layers": [0]}
MODELS = {
    "vit": lambda: ViTForImageClassification(ViTConfig(**PICTURE)),
    "deit": lambda: DeiTForImageClassification(DeiTConfig(**PICTURE)),
    "dinov2": lambda: Dinov2ForImageClassification(Dinov2Config(**PICTURE)),
    "videomae": lambda: VideoMAEForVideoClassification(VideoMAEConfig(**CLIP)),
    "yolos": lambda: YolosForObjectDetection(YolosConfig(**BOXES, use_mid_position_embeddings=False)),
    "yolos_mid": lambda: YolosForObjectDetection(YolosConfig(**BOXES, use_mid_position_embeddings=True)),
    "vim": lambda: VimForImageClassification(VimConfig(**SCAN)),
    "plainmamba": lambda: PlainMambaForImageClassification(PlainMambaConfig(**SCAN | PATHS)),
    "plainmamba_own": lambda: PlainMambaForImageClassification(PlainMambaConfig(**SCAN | PATHS, permute_params=True)),
}
SCANNING = ("vim", "plainmamba", "plainmamba_own")
ATTENDING = tuple(name for name in MODELS if name not in SCANNING)


@functools.cache
def shared(family: str, attention: str = "sdpa") -> Backbone:
    """A model of a family in float64; tests leave it as it is."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[family]().double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.15 * torch.randn_like(parameter))
    if family in ATTENDING:
        model.set_attn_implementation(attention)
    return Backbone(model)


def pictures(host: Backbone, batch: int = 2) -> dict[str, torch.Tensor]:
    """Inputs of random pictures or clips."""
    pixels = host.example(batch)["pixel_values"]
    return {"pixel_values": pixels}
