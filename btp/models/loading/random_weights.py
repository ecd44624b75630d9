"""Builds an architecture without a checkpoint, on the device itself: for what depends on sizes alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from btp.models.loading.checkpoint import check_depth
from btp.models.loading.kinds import KINDS, Kind
from btp.models.loading.weight_memory import check_memory, model_bytes

BLOCK, STD = 2**20 + 7, 0.02  # an odd length, so that no two rows of a matrix are the same


def describe(config: Mapping[str, Any]) -> PreTrainedConfig:
    """The architecture of a model yaml's `config`.

    Raises:
        ValueError: this transformers does not know its model_type, or refuses a value; or it has too many layers.
    """
    check_depth(config, "model.config")
    try:
        return AutoConfig.for_model(**config)
    except Exception as error:
        raise ValueError(f"model.config describes no model of transformers: {error}. Correct it.") from error


def build(
    config: PreTrainedConfig, device: torch.device, dtype: torch.dtype, attention: str, kind: Kind = KINDS["image-text"]
) -> PreTrainedModel:
    """The model with random weights, made in place: no copy on the host, no second in another dtype.

    Matrices hold one block of small normal numbers over and over, which takes as long as writing memory; norms, biases
    and position tables are initialised as always.

    Raises:
        ValueError: the device has too little memory.
    """
    sketch = empty(config, torch.device("meta"), dtype, attention, kind)
    check_memory(model_bytes(sketch), device, dtype, random=True)
    model = empty(config, device, dtype, attention, kind)
    _fill(model)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        model.initialize_weights()
    return model


def empty(
    config: PreTrainedConfig, device: torch.device, dtype: torch.dtype, attention: str, kind: Kind = KINDS["image-text"]
) -> PreTrainedModel:
    """The modules with whatever their memory holds; on the meta device, sizes alone."""
    with device, no_init_weights():
        model = kind.auto.from_config(config, dtype=dtype, attn_implementation=attention)
    model.tie_weights()
    return model


def _fill(model: nn.Module) -> None:
    """Write all matrices, and mark them so that initialisation leaves them alone."""
    device = next(model.parameters()).device
    block = torch.randn(BLOCK, device=device, generator=torch.Generator(device).manual_seed(0)) * STD
    blocks: dict[torch.dtype, torch.Tensor] = {}
    for weight in model.parameters():
        if weight.dim() > 1:
            source = blocks.setdefault(weight.dtype, block.to(weight.dtype))
            for part in weight.data.view(-1).split(BLOCK):
                part.copy_(source[: len(part)])
            weight._is_hf_initialized = True  # type: ignore[attr-defined]
