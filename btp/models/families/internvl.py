"""InternVL (InternVL3, InternVL3.5) in the class that transformers brings: tiles of one size, and a thumbnail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from btp.core.host import Layout
from btp.models.families import grids, tiles
from btp.models.lvlm import LVLM

_MOST_TILES = 12  # of the processors that the checkpoints bring


class InternVL(LVLM):
    """Every tile of a picture is one square grid, halved by a pixel shuffle; the picture's tiles follow each other.

    Frame 0 of a picture is its thumbnail, which shows all of it and comes last in the prompt; frames 1, 2, ... are its
    tiles in reading order, each with rows and columns of its own. The inputs say how many tiles there are, but not in
    how many rows they lie, so tiles are not put together. A picture of one tile is frame 0. Each frame of a video is a
    picture of its own, as the prompt writes it.
    """

    families = ("internvl",)

    pooled = "a pixel shuffle"

    def layout(self, inputs: Mapping[str, Any]) -> Layout:
        """Where the visual tokens lie; no token is one of the vision tower's. One host sync.

        Raises:
            ValueError: a row whose placeholders are no whole number of tiles.
        """
        visual = self.visual_mask(inputs)
        rows, columns = self._sides(inputs.get("pixel_values"))
        grids.check_whole(visual.sum(1).tolist(), rows * columns, type(self.model).__name__)
        coord, image = tiles.stacked(visual, rows, columns)
        return Layout(visual, coord, image, torch.full_like(image, -1))

    def example(self, batch: int, words: int, height: int, width: int, frames: int | None = None) -> dict[str, Tensor]:
        """As LVLM: a picture is cut into the tiles that the processor would choose, a frame of a video is one."""
        side, count = self.config.vision_config.image_size, 1
        if frames is None:
            across, down = get_optimal_tiled_canvas((height, width), tuple(side), 1, _MOST_TILES)
            count = across * down + (across * down > 1)
        pixels = self.noise(batch * count * (frames or 1), 3, *side)
        rows, columns = self._sides(pixels)
        picture = [self.placeholder("image")] * (count * rows * columns)
        placeholders = picture if frames is None else [*picture, self.words()[0]] * frames
        return self.prompt(batch, placeholders, words) | {"pixel_values": pixels}

    def tiling(self, tiles: int, height: int, width: int) -> tuple[int, int]:
        """As the processor chooses among all ways to lay out this many tiles."""
        tile = tuple(self.config.vision_config.image_size)
        columns, rows = get_optimal_tiled_canvas((height, width), tile, tiles, tiles)
        return rows, columns

    def picture_grid(self, pixels: Tensor) -> tuple[int, int]:
        """(rows, columns) of the vision tower's tokens for pictures [P, 3, height, width]."""
        high, wide = self.config.vision_config.patch_size
        return pixels.shape[-2] // high, pixels.shape[-1] // wide

    def _sides(self, pixels: Tensor | None) -> tuple[int, int]:
        """(rows, columns) of a tile's visual tokens."""
        if pixels is None:
            pixels = torch.empty(0, 3, *self.config.vision_config.image_size, device="meta")
        rows, columns = self.picture_grid(pixels)
        return int(rows * self.config.downsample_ratio), int(columns * self.config.downsample_ratio)
