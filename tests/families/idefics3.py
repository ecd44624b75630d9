"""Idefics3 and SmolVLM: rows of tiles with marks between them, and a view of the whole behind.

SmolVLM's own processor needs torchvision and num2words, for videos alone. Its pictures and prompts are those of the
Idefics3 processor, which its first checkpoints bring, and which stands in for it here.
"""

from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from families import kit

EDGE, PATCH = 28, 7  # four patches a side, two visual tokens a side
MARKS = [f"<row_{r}_col_{c}>" for r in range(1, 5) for c in range(1, 5)]


def parts():
    """What both families have in common: the arguments of a config, and a processor."""
    tokenizer = kit.tokenizer(
        "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *MARKS, image_token="<image>"
    )
    config = {
        "vision_config": kit.VISION | {"image_size": EDGE, "patch_size": PATCH},
        "text_config": LlamaConfig(**kit.TEXT, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id),
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "scale_factor": 2,
    }
    sizes = {"size": {"longest_edge": 3 * EDGE}, "max_image_size": {"longest_edge": EDGE}}
    processor = Idefics3Processor(
        Idefics3ImageProcessorPil(**sizes), tokenizer, image_seq_len=4, chat_template=kit.chat("<image>")
    )
    return config, processor


def idefics3():
    """Four tokens a view, at most nine tiles and a view of the whole."""
    config, processor = parts()
    return Idefics3ForConditionalGeneration(Idefics3Config(**config)), processor


def smolvlm():
    """The same as SmolVLM."""
    config, processor = parts()
    return SmolVLMForConditionalGeneration(SmolVLMConfig(**config)), processor


def inputs(processor, texts, images, videos):
    """Rows without a picture in the middle of a batch need their pictures as one list a row."""
    nested = None
    if images is not None:
        left = list(images)
        nested = [[left.pop(0) for _ in range(text.count("<image>"))] for text in texts]
    return processor(text=texts, images=nested, padding=True, return_tensors="pt")


SIZES = kit.Picture(84, 28), kit.Picture(40, 84), kit.Picture(60, 60)
FAMILIES = (
    kit.Family("idefics3", idefics3, SIZES, inputs=inputs),
    kit.Family("smolvlm", smolvlm, SIZES, inputs=inputs),
)
