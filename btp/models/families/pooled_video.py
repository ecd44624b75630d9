"""Any-resolution families whose videos are pooled: frames of fewer tokens, none of which is the tower's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from btp.core.host import Packed
from btp.models.families.llava_next import AnyRes
from btp.models.families.packed import OFF


class PooledVideos(AnyRes):
    """As AnyRes; a subclass says where the tokens of a video's frames lie."""

    @abstractmethod
    def video_coord(self, frames: int, pixels: Tensor) -> Tensor:
        """[T, 3] (frame, row, column) of the tokens of one video; -1 off the grid.

        Args:
            frames: Frames of the video.
            pixels: [videos, frames, 3, height, width].
        """

    def packing(self, kind: str, arguments: Mapping[str, Any]) -> Sequence[Packed] | None:
        """One entry per picture or video."""
        if kind == "image":
            return super().packing(kind, arguments)
        pixels = arguments.get("pixel_values_videos")
        if pixels is None:
            return None
        videos, each = pixels.shape[:2]
        counts = arguments.get("frames") or [each] * videos
        coords = {count: self.video_coord(count, pixels) for count in set(counts)}
        return [Packed(coords[count], torch.full_like(coords[count][:, 0], OFF)) for count in counts]

    def example(self, batch: int, words: int, height: int, width: int, frames: int | None = None) -> dict[str, Tensor]:
        """As AnyRes, or a video whose frames are resized to a tile, whatever their size."""
        if frames is None:
            return super().example(batch, words, height, width)
        edge = self.config.vision_config.image_size
        inputs = {"pixel_values_videos": self.noise(batch, frames, 3, edge, edge)}
        return self.prompt(batch, self.placeholders("video", inputs, batch), words) | inputs
