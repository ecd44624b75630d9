"""Architectures and picture processors of the embedded models that are a vision tower alone: real classes, small sizes.

Only the recipes in experiments/embedded build them; everybody else loads a checkpoint like any other.
"""

from collections.abc import Sequence

from torch import nn
from transformers import (
    PreTrainedConfig,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VideoMAEImageProcessor,
    ViTImageProcessor,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)

from btp.models.vim import VimConfig, VimForImageClassification

MEAN, STD = 0.5, 0.25  # as all their processors normalise pixels in [0, 1]
BLOCK = {"hidden_size": 96, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 384}


def build_action(classes: Sequence[str], *, side: int, frames: int) -> VideoMAEForVideoClassification:
    """A VideoMAE of 6 x 96 with random weights: tubes of 2 frames and 8 x 8 pixels, the mean of all read out."""
    config = VideoMAEConfig(
        image_size=side,
        patch_size=8,
        num_frames=frames,
        tubelet_size=2,
        use_mean_pooling=True,
        layer_norm_eps=1e-6,
        **BLOCK,
        **_names(classes),
    )
    return VideoMAEForVideoClassification(config)


def build_detector(classes: Sequence[str], *, side: int, tokens: int = 12) -> YolosForObjectDetection:
    """A YOLOS of 6 x 96 with random weights: patches of 8 pixels and `tokens` detection tokens.

    transformers starts its tokens and places at zero, which would leave all detection tokens alike for ever.
    """
    config = YolosConfig(
        image_size=[side, side],
        patch_size=8,
        num_detection_tokens=tokens,
        use_mid_position_embeddings=False,
        layer_norm_eps=1e-6,
        **BLOCK,
        **_names(classes),
    )
    model = YolosForObjectDetection(config)
    embeddings = model.vit.embeddings
    for parameter in (embeddings.cls_token, embeddings.detection_tokens, embeddings.position_embeddings):
        nn.init.normal_(parameter, std=0.2)
    return model


def build_vim(classes: Sequence[str], *, side: int) -> VimForImageClassification:
    """A Vim of 8 x 64 and 4 states with random weights: patches of 8 pixels."""
    config = VimConfig(
        image_size=side, patch_size=8, hidden_size=64, num_hidden_layers=8, state_size=4, **_names(classes)
    )
    return VimForImageClassification(config)


def build_processor(config: PreTrainedConfig) -> VideoMAEImageProcessor | YolosImageProcessor | ViTImageProcessor:
    """The processor of pictures, or of lists of frames, for a model of one of the builders above."""
    side = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
    kinds = {"videomae": VideoMAEImageProcessor, "yolos": YolosImageProcessor, "btp_vim": ViTImageProcessor}
    settings = {"size": {"height": side, "width": side}, "image_mean": [MEAN] * 3, "image_std": [STD] * 3}
    if config.model_type == "videomae":
        settings["do_center_crop"] = False
    if config.model_type == "yolos":
        settings["do_pad"] = False
    return kinds[config.model_type](**settings)


def _names(classes: Sequence[str]) -> dict:
    return {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}
