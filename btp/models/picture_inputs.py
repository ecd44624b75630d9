"""Picture inputs of a forward: pixels, or features that a generate() encoded before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


def pixels(inputs: Mapping[str, Any], kind: str = "image") -> Tensor | None:
    """[..., C, height, width] of all pictures, without content where they were encoded before; None where unknown."""
    encoded = inputs.get("encoded", {}).get(kind)
    found = inputs if encoded is None else encoded.arguments
    return found.get(PIXELS[kind])


def has(inputs: Mapping[str, Any], kind: str) -> bool:
    """Whether there are pictures ("image") or videos ("video") at all."""
    return pixels(inputs, kind) is not None or _features(inputs, kind) is not None


def lengths(inputs: Mapping[str, Any], kind: str = "image") -> list[int] | int | None:
    """Tokens of each picture, where they were encoded before; else how many pictures the pixels are; None where
    neither is known.
    """
    entries = _features(inputs, kind)
    if isinstance(entries, list | tuple) or (isinstance(entries, Tensor) and entries.dim() == 3):
        return [len(entry) for entry in entries]
    found = pixels(inputs, kind)
    return None if found is None or entries is not None else found.shape[:-3].numel()


def _features(inputs: Mapping[str, Any], kind: str) -> Any:
    return getattr((inputs.get("mm_encoder_outputs") or {}).get(kind), "pooler_output", None)
