"""Video-LLaVA: a vision tower for images and one for videos, behind them one projector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from btp.core.host import Packed
from btp.models.families.packed import OFF, PackedLVLM, frames


class VideoLlava(PackedLVLM):
    """An image is one square grid. Each frame of a video is one too, with the tower's class token in front of it, which
    lies on no grid: the model takes it out of images alone.

    Stages and signals are those of the language model: of two towers, the engine would have to follow both.
    """

    families = ("video_llava",)

    unfollowed = "two vision towers, one for images and one for videos, which are not followed"

    def packing(self, kind: str, arguments: Mapping[str, Any]) -> Sequence[Packed] | None:
        """One entry per image, or per frame of a video."""
        names = ("pixel_values", "pixel_values_images") if kind == "image" else ("pixel_values_videos",)
        pixels = next((arguments[name] for name in names if arguments.get(name) is not None), None)
        if pixels is None:
            return None
        rows, columns = self.picture_grid(pixels)
        if kind == "image":
            whole = self.config.vision_feature_select_strategy == "full"
            return [_frame(0, rows, columns, int(whole))] * len(pixels)
        videos, each = pixels.shape[:2]
        counts = arguments.get("frames") or [each] * videos
        return [_frame(i, rows, columns, 1) for count in counts for i in range(count)]

    def example(self, batch: int, words: int, height: int, width: int, frames: int | None = None) -> dict[str, Tensor]:
        """As LVLM, or a video whose frames are resized to the tower's input, whatever their size."""
        edge = self.config.vision_config.image_size
        kind, name = ("image", "pixel_values") if frames is None else ("video", "pixel_values_videos")
        inputs = {name: self.noise(batch, *([] if frames is None else [frames]), 3, edge, edge)}
        return self.prompt(batch, self.placeholders(kind, inputs, batch), words) | inputs


def _frame(number: int, rows: int, columns: int, class_tokens: int) -> Packed:
    coord = frames(1, rows, columns, class_tokens)
    coord[class_tokens:, 0] = number
    return Packed(coord, torch.full_like(coord[:, 0], OFF), begins=number == 0)
