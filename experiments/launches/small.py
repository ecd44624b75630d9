"""A LLaVA of random weights that is small enough to be followed operator by operator, and prompts for it."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from btp.models.lvlm import LVLM

SIDE = 8  # visual tokens per side of a picture
LAYERS = 8
_IMAGE, _WORDS = 80, 79
_BLOCK = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}


def small(attention: str = "sdpa") -> LVLM:
    """Eight decoder layers and three of a CLIP tower; the same weights at every call."""
    vision = CLIPVisionConfig(**_BLOCK, num_hidden_layers=3, image_size=14 * SIDE, patch_size=14, projection_dim=16)
    text = LlamaConfig(**_BLOCK, vocab_size=_IMAGE + 10, num_hidden_layers=LAYERS, num_key_value_heads=2)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=_IMAGE, image_seq_length=SIDE * SIDE)
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation=attention).eval()
    for weight in model.parameters():
        if weight.dim() > 1:  # wide enough that every token matters
            torch.nn.init.normal_(weight, std=0.12)
    return LVLM(model)


def prompts(rows: int = 1, uneven: bool = False) -> dict[str, Tensor]:
    """Text, a picture and text; `uneven` lets each row be shorter than the one before, padded on the left."""
    random = torch.Generator().manual_seed(0)
    length = 3 + SIDE * SIDE + 5 + (rows if uneven else 0)
    ids, mask = torch.zeros(rows, length, dtype=torch.long), torch.zeros(rows, length, dtype=torch.long)
    for b in range(rows):
        behind = 5 + (rows - b if uneven else 0)
        words = torch.randint(2, _WORDS, (3 + behind,), generator=random)
        row = torch.cat([words[:3], torch.full((SIDE * SIDE,), _IMAGE), words[3:]])
        ids[b, length - len(row) :], mask[b, length - len(row) :] = row, 1
    pixels = torch.randn(rows, 3, 14 * SIDE, 14 * SIDE, generator=random)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}
