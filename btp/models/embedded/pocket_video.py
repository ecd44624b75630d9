"""Architectures, tokenizers and processors of the embedded video models: a small LLaVA-OneVision, and a small SigLIP.

Only the recipes in experiments/embedded build them; everybody else loads the shipped checkpoints like any other.
"""

from collections.abc import Iterable
from typing import Any

from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipImageProcessor,
    SiglipModel,
    SiglipVisionConfig,
)
from transformers.models.siglip import SiglipConfig

from btp.models.embedded.pocket import build_tokenizer
from btp.models.loading.processor_without_video import without_videos

TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] in ('image', 'video') %}<{{ c['type'] }}> "
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
SPECIAL = {"image_token": "<image>", "video_token": "<video>"}
NORM: dict[str, Any] = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
LONGEST = 64  # tokens of a text that the matcher reads


def build_video_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """Make a word-level tokenizer with placeholders of pictures and of videos."""
    return build_tokenizer(words, extra=SPECIAL)


def build_video_processor(tokenizer: PreTrainedTokenizerFast, side: int, patch: int) -> LlavaOnevisionProcessor:
    """Make the processor of pictures and text: one tile of `side` pixels a picture."""
    images = LlavaOnevisionImageProcessorPil(
        size={"height": side, "width": side}, image_grid_pinpoints=[[side, side]], **NORM
    )
    return without_videos(LlavaOnevisionProcessor)(
        images,
        tokenizer,
        num_image_tokens=(side // patch) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_1",
        chat_template=TEMPLATE,
    )


def build_video_model(
    tokenizer: PreTrainedTokenizerFast, *, side: int, patch: int, vision: dict, text: dict
) -> LlavaOnevisionForConditionalGeneration:
    """Make the model with random weights.

    Args:
        side: Side of a frame in pixels, a multiple of `patch`.
        vision: Sizes of the SigLIP tower (keys of SiglipVisionConfig).
        text: Sizes of the Qwen2 decoder (keys of Qwen2Config).
    """
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    tower = SiglipVisionConfig(image_size=side, patch_size=patch, **vision)
    tower.vision_use_head = False
    config = LlavaOnevisionConfig(
        vision_config=tower,
        text_config=Qwen2Config(vocab_size=len(tokenizer), max_position_embeddings=4096, **text, **ids),
        image_token_index=tokenizer.get_vocab()["<image>"],
        video_token_index=tokenizer.get_vocab()["<video>"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_1",
        image_grid_pinpoints=[[side, side]],
        tie_word_embeddings=False,
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    for name, value in ids.items():
        setattr(model.generation_config, name, value)
    return model


def build_matcher(
    tokenizer: PreTrainedTokenizerFast, *, side: int, patch: int, vision: dict, text: dict
) -> SiglipModel:
    """Make a SigLIP of pictures and captions with random weights."""
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = SiglipConfig(
        vision_config={"image_size": side, "patch_size": patch, **vision},
        text_config={"vocab_size": len(tokenizer), "max_position_embeddings": LONGEST, **text, **ids},
    )
    return SiglipModel(config)


def build_frame_processor(side: int) -> SiglipImageProcessor:
    """The picture processor of the matcher."""
    return SiglipImageProcessor(size={"height": side, "width": side}, **NORM)
