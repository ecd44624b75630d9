"""Architecture, tokenizer and processor of the embedded model `pocket`: a small, ordinary LLaVA.

Only the recipes in experiments/embedded build it; everybody else loads the shipped checkpoint like any other.
"""

from collections.abc import Iterable, Mapping

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
IMAGE = {"image_token": "<image>"}


def build_tokenizer(words: Iterable[str], extra: Mapping[str, str] = IMAGE) -> PreTrainedTokenizerFast:
    """Make a word-level tokenizer that knows `words` and the roles of the chat; digits are one token each.

    Args:
        words: Words and stops.
        extra: Further special tokens by the name of their attribute.
    """
    special = ["<pad>", "<s>", "</s>", "<unk>", *extra.values()]
    vocabulary = {w: i for i, w in enumerate(dict.fromkeys((*special, "USER", "ASSISTANT", ":", *words)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    split = [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        extra_special_tokens=dict(extra),
        model_max_length=2048,
    )


def build_processor(words: Iterable[str], side: int, patch: int) -> LlavaProcessor:
    """Make the processor: images to `side` pixels, (side / patch)^2 image tokens, left padding."""
    images = CLIPImageProcessor(
        size={"height": side, "width": side},
        do_center_crop=False,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.25, 0.25, 0.25],
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(words),
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=TEMPLATE,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast, *, side: int, patch: int, vision: dict, text: dict
) -> LlavaForConditionalGeneration:
    """Make the model with random weights.

    Args:
        side: picture side in pixels, a multiple of `patch`.
        vision: sizes of the CLIP tower (keys of CLIPVisionConfig).
        text: sizes of the Llama decoder (keys of LlamaConfig).
    """
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=side, patch_size=patch, **vision),
        text_config=LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=2048, **text, **ids),
        image_token_index=tokenizer.get_vocab()["<image>"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(side // patch) ** 2,
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    for name, value in ids.items():
        setattr(model.generation_config, name, value)
    return model
