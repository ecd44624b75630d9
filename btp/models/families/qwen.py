"""Qwen's vision-language families: packed patches, one visual token for each square of them, positions in three axes.

Where the visual tokens lie needs no rule of its own: a picture or video has one grid, and its placeholders are its
tokens in order, frame by frame. Qwen3-VL writes a timestamp in front of each frame; the grid runs on behind it, so that
a video is one picture of several frames in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.vision_utils import get_vision_window_index

from btp.models.lvlm import LVLM


class QwenVL(LVLM):
    """Qwen2-VL and Qwen2.5-VL, whose videos are one run of placeholders."""

    families = ("qwen2_vl", "qwen2_5_vl")

    pooled = "the merger"
    timestamp = 0  # text tokens in front of each frame of a video, with its own begin and end

    def tower_order(self, grid: Sequence[Sequence[int]]) -> Tensor:
        """[N] which visual token of the pass each group of patches is, in the tower's order: windows come in turn.

        Args:
            grid: (frames, patch rows, patch columns) of each picture of a pass through the tower.
        """
        vision = self.config.vision_config
        if hasattr(vision, "window_size"):
            grids = torch.tensor(grid)
            return get_vision_window_index(grids, vision.spatial_merge_size, vision.window_size, vision.patch_size)[0]
        return torch.arange(sum(t * h * w for t, h, w in grid) // vision.spatial_merge_size**2)

    def example(self, batch: int, words: int, height: int, width: int, frames: int | None = None) -> dict[str, Tensor]:
        """As `LVLM.example`; the picture is brought to whole tokens, at least one, and not resized otherwise.

        A video takes one token row for each `temporal_patch_size` frames.
        """
        vision, kind = self.config.vision_config, "image" if frames is None else "video"
        merge, deep = vision.spatial_merge_size, vision.temporal_patch_size
        rows, columns = (max(round(n / (vision.patch_size * merge)), 1) for n in (height, width))
        grid = (-(-(frames or 1) // deep), rows * merge, columns * merge)
        start, end = self.config.vision_start_token_id, self.config.vision_end_token_id
        if frames is not None and self.timestamp:
            text = self.prompt(1, [], self.timestamp)["input_ids"][0].tolist()
            line = [*text, start, *[self._token(kind)] * (rows * columns), end] * grid[0]
        else:
            line = [start, *[self._token(kind)] * (grid[0] * rows * columns), end]
        found = self.prompt(batch, line, words)
        patches = grid[0] * grid[1] * grid[2]
        pixels = self.noise(batch * patches, vision.in_channels * deep * vision.patch_size**2)
        images, videos = (found["input_ids"] == self._token(name) for name in ("image", "video"))
        name = "pixel_values" if frames is None else "pixel_values_videos"
        return found | {
            "mm_token_type_ids": images.int() + 2 * videos.int(),
            name: pixels,
            f"{kind}_grid_thw": torch.tensor([grid] * batch, device=self.device),
        }


class Qwen3VL(QwenVL):
    """Qwen3-VL, whose videos are frames with a timestamp between."""

    families = ("qwen3_vl",)

    timestamp = 6  # as in "<12.5 seconds>"
