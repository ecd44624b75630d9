"""LLaVA-NeXT-Video: pictures as LLaVA-NeXT, frames of a video pooled two by two.

Its video processor needs torchvision. Pixels and placeholders of videos are written by hand here.
"""

from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextImageProcessorPil,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaNextVideoProcessor,
)

from btp.models.loading.processor_without_video import without_videos
from families import kit
from families.llava_next import PATCH
from families.llava_onevision import beside

EDGE = 4 * PATCH
PINPOINTS = [[EDGE, 2 * EDGE], [2 * EDGE, EDGE]]


def build():
    """Tiles of four by four tokens."""
    tokenizer = kit.tokenizer("<clip>", image_token="<image>", video_token="<video>")
    config = LlavaNextVideoConfig(
        vision_config=CLIPVisionConfig(**kit.VISION | {"num_hidden_layers": 3}, image_size=EDGE, patch_size=PATCH),
        text_config=LlamaConfig(**kit.TEXT, vocab_size=len(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        vision_feature_layer=-2,
        image_grid_pinpoints=PINPOINTS,
    )
    processor = without_videos(LlavaNextVideoProcessor)(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": EDGE}, crop_size={"height": EDGE, "width": EDGE}, image_grid_pinpoints=PINPOINTS
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=kit.chat("<image>", "<video>"),
    )
    return LlavaNextVideoForConditionalGeneration(config), processor


def inputs(processor, texts, images, videos):
    """Four tokens a frame."""
    return beside(processor, texts, images, videos, EDGE, 0, pooled=2)


SIZES = kit.Picture(100, 50), kit.Picture(84, 90), kit.Picture(30, 90)
CLIP = kit.Video(3, 56, 56)
FAMILIES = (kit.Family("llava_next_video", build, SIZES, CLIP, inputs),)
