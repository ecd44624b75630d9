"""LLaVA-NeXT-Video: pictures as LLaVA-NeXT, and videos whose frames are pooled in front of the projector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from btp.core.tower import Packed
from btp.models.anyres import AnyRes
from btp.models.packed import OFF, frames


class LlavaNextVideo(AnyRes):
    """As AnyRes; a video's tokens are means of spatial_pool_stride x spatial_pool_stride patches, without newlines."""

    blends = "the frames of a video are pooled in front of the projector. Pictures are not"

    def packing(self, kind: str, arguments: Mapping[str, Any]) -> Sequence[Packed] | None:
        """One entry per picture or video."""
        if kind == "image":
            return super().packing(kind, arguments)
        pixels = arguments.get("pixel_values_videos")
        if pixels is None:
            return None
        videos, count = pixels.shape[:2]
        rows, columns = (n // self.config.spatial_pool_stride for n in self.picture_grid(pixels))
        coord = frames(count, rows, columns)
        return [Packed(coord, torch.full_like(coord[:, 0], OFF))] * videos

    def example(self, batch: int, words: int, height: int, width: int, frames: int | None = None) -> dict[str, Tensor]:
        """As AnyRes, or a video whose frames are resized to a tile, whatever their size."""
        if frames is None:
            return super().example(batch, words, height, width)
        edge = self.config.vision_config.image_size
        inputs = {"pixel_values_videos": self.noise(batch, frames, 3, edge, edge)}
        return self.prompt(batch, self.placeholders("video", inputs, batch), words) | inputs
