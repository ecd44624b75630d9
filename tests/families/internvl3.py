"""InternVL3 and 3.5: tiles of one size, each halved by a pixel shuffle, and a thumbnail behind them."""

from functools import partial

from transformers import (
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVisionConfig,
    Qwen2Config,
    Qwen3Config,
)

from btp.models.loading.processor_without_video import without_videos
from families import kit

EDGE, PATCH = 28, 7  # four patches a side, two visual tokens a side


def build(text=Qwen2Config, **more):
    """Four tokens a tile, at most four tiles and a thumbnail."""
    tokenizer = kit.tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(**kit.VISION, image_size=EDGE, patch_size=PATCH),
        text_config=text(**kit.TEXT, **more, vocab_size=len(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    processor = without_videos(InternVLProcessor)(
        GotOcr2ImageProcessorPil(
            size={"height": EDGE, "width": EDGE}, crop_to_patches=True, min_patches=1, max_patches=4
        ),
        tokenizer,
        image_seq_length=4,
        chat_template=kit.chat("<IMG_CONTEXT>"),
    )
    return InternVLForConditionalGeneration(config), processor


SIZES = kit.Picture(28, 28), kit.Picture(84, 28), kit.Picture(56, 56)
FAMILIES = (
    kit.Family("internvl3", build, SIZES),
    kit.Family("internvl35", partial(build, Qwen3Config, head_dim=8), SIZES),
)
