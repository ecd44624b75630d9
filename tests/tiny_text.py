"""Tiny random text models and prompts of random tokens, made in milliseconds."""

import functools

import tiny
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from btp.models.text import TextLM

OPT = {k: v for k, v in tiny.TEXT.items() if k not in ("intermediate_size", "num_key_value_heads")}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, tiny.TEXT),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, tiny.TEXT),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, tiny.TEXT | {"head_dim": 8}),
    "mistral": (MistralForCausalLM, MistralConfig, tiny.TEXT | {"sliding_window": None}),
    "opt": (OPTForCausalLM, OPTConfig, OPT | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
}


def text_lm(family: str, attention: str = "sdpa", dtype: torch.dtype = torch.float32, **sizes) -> TextLM:
    """A decoder of four layers with grouped heads (OPT: as many key heads as query heads)."""
    model_class, config_class, text = FAMILIES[family]
    torch.manual_seed(0)
    config = config_class(**text | sizes)
    model = model_class._from_config(config, attn_implementation=attention).eval().to(dtype)
    for weight in model.parameters():
        if weight.dim() > 1:  # wide enough that every token matters
            torch.nn.init.normal_(weight, std=0.12)
    model.generation_config.pad_token_id = tiny.PAD
    model.generation_config.eos_token_id = None
    return TextLM(model)


@functools.cache
def shared(family: str, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> TextLM:
    """The same model for every test that leaves it as it was."""
    return text_lm(family, attention, dtype)


def prompts(lengths: list[int], padding: str = "left", seed: int = 0) -> dict[str, torch.Tensor]:
    """A row of random tokens for each length."""
    random = torch.Generator().manual_seed(seed)
    S = max(lengths)
    ids, mask = torch.full((len(lengths), S), tiny.PAD), torch.zeros(len(lengths), S, dtype=torch.long)
    for b, n in enumerate(lengths):
        where = slice(S - n, S) if padding == "left" else slice(0, n)
        ids[b, where], mask[b, where] = torch.randint(2, 79, (n,), generator=random), 1
    return {"input_ids": ids, "attention_mask": mask}
