"""LLaVA-OneVision: SigLIP in tiles, resized where they are many; several pictures a prompt; pooled videos.

Its video processor needs torchvision. Pixels and placeholders of videos are written by hand here.
"""

import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    Qwen2Config,
    SiglipVisionConfig,
)

from btp.models.loading.processor_without_video import without_videos
from families import kit

EDGE, PATCH, SIDE = 42, 14, 3
PINPOINTS = [[high * EDGE, wide * EDGE] for high in (1, 2, 3) for wide in (1, 2, 3)]


def build(limit="anyres_max_9"):
    """Tiles of three by three tokens."""
    tokenizer = kit.tokenizer("<clip>", image_token="<image>", video_token="<video>")
    vision = SiglipVisionConfig(**kit.VISION | {"num_hidden_layers": 3}, image_size=EDGE, patch_size=PATCH)
    vision.vision_use_head = False
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=Qwen2Config(**kit.TEXT, vocab_size=len(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio=limit,
    )
    processor = without_videos(LlavaOnevisionProcessor)(
        LlavaOnevisionImageProcessorPil(size={"height": EDGE, "width": EDGE}, image_grid_pinpoints=PINPOINTS),
        tokenizer,
        num_image_tokens=SIDE**2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=limit,
        chat_template=kit.chat("<image>", "<video>"),
    )
    return LlavaOnevisionForConditionalGeneration(config), processor


def inputs(processor, texts, images, videos):
    """Pictures by row, since several in one are not cut into tiles; videos beside them."""
    left = iter(images or ())
    rows = [[next(left) for _ in range(text.count("<image>"))] for text in texts]
    return beside(processor, texts, [row for row in rows if row] or None, videos, EDGE, 1, pooled=(SIDE + 1) // 2)


def beside(processor, texts, images, videos, edge, extra, pooled, class_tokens=0):
    """What the processor makes of text and pictures, with videos beside them.

    The processor takes no placeholders of videos without videos, so a stand-in is written first.

    Args:
        edge: of a frame in pixels.
        extra: tokens behind a video.
        pooled: rows and columns of tokens that are left of a frame.
        class_tokens: tokens in front of each frame.
    """
    made = [torch.stack([frame(x, edge) for x in video]) for video in videos or ()]
    left = iter(made)

    def written(video):
        return "<clip>" * (len(video) * (pooled**2 + class_tokens) + extra)

    for i, text in enumerate(texts):
        first, *rest = text.split("<video>")
        texts[i] = first + "".join(written(next(left)) + part for part in rest)
    found = processor(text=texts, images=images, padding=True, return_tensors="pt")
    if made:
        clip, video = processor.tokenizer.convert_tokens_to_ids(["<clip>", "<video>"])
        found["input_ids"] = found["input_ids"].masked_fill(found["input_ids"] == clip, video)
        found["pixel_values_videos"] = torch.stack(made)
    return found


def frame(picture, edge):
    """[3, edge, edge] from [height, width, 3]."""
    x = torch.from_numpy(picture).float().permute(2, 0, 1)[None] / 127.5 - 1
    return torch.nn.functional.interpolate(x, (edge, edge))[0]


def resized():
    """The same with room for two tiles: larger pictures are resized."""
    return build("anyres_max_2")


SIZES = kit.Picture(80, 50), kit.Picture(120, 110), kit.Picture(30, 40)
CLIP = kit.Video(3, 42, 42)
FAMILIES = (kit.Family("llava_onevision", build, SIZES, CLIP, inputs),)
