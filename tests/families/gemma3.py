"""Gemma 3: pictures that see themselves both ways, and three layers of four with a window."""

from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Gemma3TextConfig,
    SiglipVisionConfig,
)

from families import kit

EDGE, PATCH, WINDOW = 42, 7, 48  # six patches a side, three visual tokens a side


def build(window=WINDOW):
    """Nine tokens a picture; every prompt fits into the window (tests/engine/test_gemma3.py has longer ones)."""
    tokenizer = kit.tokenizer(
        boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>"
    )
    of = tokenizer.convert_tokens_to_ids
    text = Gemma3TextConfig(
        **kit.TEXT,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=window,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"],
        vocab_size=len(tokenizer),
    )
    config = Gemma3Config(
        text_config=text,
        vision_config=SiglipVisionConfig(**kit.VISION, image_size=EDGE, patch_size=PATCH, vision_use_head=False),
        mm_tokens_per_image=9,
        boi_token_index=of("<start_of_image>"),
        eoi_token_index=of("<end_of_image>"),
        image_token_index=of("<image_soft_token>"),
    )
    processor = Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": EDGE, "width": EDGE}),
        tokenizer,
        image_seq_length=9,
        chat_template=kit.chat("<start_of_image>"),
    )
    return Gemma3ForConditionalGeneration(config), processor


def inputs(processor, texts, images, videos, **more):
    """The processor wants the pictures of each row as a list."""
    left = list(images or ())
    nested = [[left.pop(0) for _ in range(text.count("<start_of_image>"))] for text in texts]
    return processor(text=texts, images=nested if images else None, padding=True, return_tensors="pt", **more)


SIZES = kit.Picture(42, 42), kit.Picture(30, 36), kit.Picture(20, 20)
FAMILIES = (kit.Family("gemma3", build, SIZES, inputs=inputs),)
