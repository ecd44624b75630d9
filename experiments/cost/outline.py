"""A model's outline without its weights: enough to solve schedules for it, and to know its visual tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from btp.measure.architecture import architecture
from btp.measure.segments import Segments, packed, square
from btp.models.loading.load import find_adapter, find_checkpoint
from btp.models.loading.random_weights import describe
from btp.models.lvlm import LVLM


@dataclass(frozen=True)
class Outline:
    """What a prompt with one picture looks like to a model.

    Attributes:
        host: the model; its weights hold nothing.
        visual: visual tokens of the prompt.
        segments: what its vision tower runs over; empty where its work is not computed.
    """

    host: LVLM
    visual: int
    segments: Segments


def outline(model: Mapping[str, Any], words: int) -> Outline:
    """Of a model yaml and its `example` picture; memory is reserved, but not touched.

    Args:
        model: the config's model group.
        words: text tokens of the prompt.
    """
    folder = find_checkpoint(model) if model["path"] else None
    config = AutoConfig.from_pretrained(folder, local_files_only=True) if folder else describe(model["config"])
    with torch.device("meta"):
        empty = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    host = find_adapter(model["adapter"])(empty.to_empty(device="cpu").eval())
    inputs = host.example(1, words, **model["example"])
    sizes = architecture(host.config, strict=False)
    segments: Segments = ()
    if sizes.vision is not None:
        grid = inputs.get("image_grid_thw")
        pictures = inputs["pixel_values"].shape[:-3].numel()
        segments = square(sizes.vision, pictures) if grid is None else packed(sizes.vision, grid.tolist())
    return Outline(host, int(host.visual_mask(inputs).sum()), segments)
