"""LLaVA-NeXT: a picture in tiles, put together without their padding, with newlines."""

from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    MistralConfig,
)

from families import kit

EDGE, PATCH = 42, 14
PINPOINTS = [[42, 84], [84, 42], [84, 84]]


def build(text=LlamaConfig, **more):
    """Tiles of three by three tokens."""
    tokenizer = kit.tokenizer(image_token="<image>")
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**kit.VISION | {"num_hidden_layers": 3}, image_size=EDGE, patch_size=PATCH),
        text_config=text(**kit.TEXT, vocab_size=len(tokenizer), **more),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=(EDGE // PATCH) ** 2,
    )
    processor = LlavaNextProcessor(
        LlavaNextImageProcessorPil(
            size={"shortest_edge": EDGE}, crop_size={"height": EDGE, "width": EDGE}, image_grid_pinpoints=PINPOINTS
        ),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=kit.chat("<image>"),
    )
    return LlavaNextForConditionalGeneration(config), processor


def mistral():
    """The same with a Mistral decoder."""
    return build(MistralConfig, sliding_window=None)


SIZES = kit.Picture(80, 50), kit.Picture(84, 84), kit.Picture(30, 70)
FAMILIES = (kit.Family("llava_next", build, SIZES), kit.Family("llava_next_mistral", mistral, SIZES))
