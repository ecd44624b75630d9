"""A second family without weights at hand: Qwen2.5-VL as small as the embedded model, drawn at random.

python -m experiments.cross_model.tiny --out work/tiny-qwen25vl

Windows in the tower, four patches merged into a visual token, positions in three axes, grouped keys: all that differs
from LLaVA between a stage and its cut is there. Its answers mean nothing; how far a cut moves them does, as far as a
random model needs its picture.
"""

import argparse
from pathlib import Path

import torch
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
)

from btp.models.loading.processor_without_video import without_videos

POCKET = Path(__file__).parents[2] / "btp/models/checkpoints/pocket"
SIDE, PATCH = 96, 2  # 48 x 48 patches, 24 x 24 visual tokens, as many as the embedded model has
TOKENS = {
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
}
TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|> {% else %}{{ c['text'] }}{% endif %}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def build(seed: int) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor]:
    """Model and processor; the words are those of the embedded model."""
    words = PreTrainedTokenizerFast.from_pretrained(
        POCKET, extra_special_tokens={"image_token": TOKENS["image"], "video_token": TOKENS["video"]}
    )
    words.add_special_tokens({"additional_special_tokens": list(TOKENS.values())})
    size = {"shortest_edge": SIDE * SIDE, "longest_edge": SIDE * SIDE}
    pictures = Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=2, temporal_patch_size=2, size=size)
    processor = without_videos(Qwen2_5_VLProcessor)(pictures, words, chat_template=TEMPLATE)
    config = Qwen2_5_VLConfig(
        **{f"{name}_token_id": words.convert_tokens_to_ids(token) for name, token in TOKENS.items()},
        text_config={
            "vocab_size": len(words),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 16,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
            "bos_token_id": words.bos_token_id,
            "eos_token_id": words.eos_token_id,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": PATCH,
            "window_size": 4 * PATCH,
            "fullatt_block_indexes": [1],
            "out_hidden_size": 64,
        },
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    for weight in model.parameters():
        if weight.dim() > 1:  # wide enough that every token matters
            torch.nn.init.normal_(weight, std=0.12)
    model.generation_config.pad_token_id = words.pad_token_id
    return model, processor


def main() -> None:
    """Write the checkpoint."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    model, processor = build(given.seed)
    model.save_pretrained(given.out)
    processor.save_pretrained(given.out)
    print(f"{given.out}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")


if __name__ == "__main__":
    main()
