"""LLaVA-1.5: one square grid per picture, CLIP with a class token."""

from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from families import kit

SIDE, PATCH = 42, 14


def build():
    """Nine tokens a picture."""
    tokenizer = kit.tokenizer(image_token="<image>")
    text = LlamaConfig(**kit.TEXT, vocab_size=len(tokenizer))
    vision = CLIPVisionConfig(**kit.VISION | {"num_hidden_layers": 3}, image_size=SIDE, patch_size=PATCH)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        image_seq_length=(SIDE // PATCH) ** 2,
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=kit.chat("<image>"),
    )
    return LlavaForConditionalGeneration(config), processor


SIZES = kit.Picture(42, 42), kit.Picture(60, 30), kit.Picture(20, 50)
FAMILIES = (kit.Family("llava15", build, SIZES),)
