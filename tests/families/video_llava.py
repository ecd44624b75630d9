"""Video-LLaVA: a tower for images, one for videos, whose frames keep their class token.

Its video processor needs torchvision. Pixels and placeholders of videos are written by hand here.
"""

from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
    VideoLlavaImageProcessor,
    VideoLlavaProcessor,
)

from btp.models.loading.processor_without_video import without_videos
from families import kit
from families.llava_onevision import beside

SIDE, PATCH = 3, 14
EDGE = SIDE * PATCH


def build():
    """Nine tokens a picture, ten a frame."""
    tokenizer = kit.tokenizer("<clip>", image_token="<image>", video_token="<video>")
    config = VideoLlavaConfig(
        vision_config=CLIPVisionConfig(**kit.VISION | {"num_hidden_layers": 3}, image_size=EDGE, patch_size=PATCH),
        text_config=LlamaConfig(**kit.TEXT, vocab_size=len(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        vision_feature_layer=-2,
    )
    processor = without_videos(VideoLlavaProcessor)(
        image_processor=VideoLlavaImageProcessor(
            size={"shortest_edge": EDGE}, crop_size={"height": EDGE, "width": EDGE}
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=kit.chat("<image>", "<video>"),
    )
    return VideoLlavaForConditionalGeneration(config), processor


def inputs(processor, texts, images, videos):
    """Ten tokens a frame."""
    return beside(processor, texts, images, videos, EDGE, 0, pooled=SIDE, class_tokens=1)


SIZES = kit.Picture(42, 42), kit.Picture(60, 30), kit.Picture(20, 50)
CLIP = kit.Video(2, 42, 42)
FAMILIES = (kit.Family("video_llava", build, SIZES, CLIP, inputs),)
