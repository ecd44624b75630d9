"""Gemma 3: one pooled square grid a picture, whose tokens see each other, and decoder layers with a window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from btp.core.host import Layout
from btp.models.families import grids
from btp.models.lvlm import LVLM


class Gemma3(LVLM):
    """Every picture is one square grid; a crop that pan and scan adds is a picture of its own, as the prompt says.

    The inputs need token_type_ids, as the processor makes them: without them the host lets no token of a picture see
    those behind it. Layers with a window are followed whatever the length of the prompt.
    """

    families = ("gemma3",)

    pooled = "average pooling"

    def layout(self, inputs: Mapping[str, Any]) -> Layout:
        """Where the visual tokens lie; no token is one of the vision tower's. One host sync.

        Raises:
            ValueError: a row whose placeholders are no whole number of pictures.
        """
        visual = self.visual_mask(inputs)
        side = self._side()
        grids.check_whole(visual.sum(1).tolist(), side**2, type(self.model).__name__)
        coord, first = grids.square(visual, side, side)
        image = grids.number(visual, first)
        return Layout(visual, coord, image, torch.full_like(image, -1))

    def example(self, batch: int, words: int, height: int, width: int, frames: int | None = None) -> dict[str, Tensor]:
        """As LVLM; the frames of a video are pictures."""
        edge, count = self.config.vision_config.image_size, frames or 1
        picture = [self.placeholder("image")] * self._side() ** 2 + [self.words()[0]]
        inputs = self.prompt(batch, picture * count, words)
        kinds = self.visual_mask(inputs).to(inputs["input_ids"].dtype)
        return inputs | {"token_type_ids": kinds, "pixel_values": self.noise(batch * count, 3, edge, edge)}

    def _side(self) -> int:
        """Visual tokens per side of a picture."""
        return int(self.config.mm_tokens_per_image**0.5)
