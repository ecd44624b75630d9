"""GLM-4V, GLM-4.1V and GLM-4.6V: packed patches as Qwen2-VL's, other names for what begins and ends a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from btp.core.host import Layout
from btp.models.lvlm import LVLM


class GLM4V(LVLM):
    """Pictures alone: frames of a video have the placeholder of pictures, with a time in seconds between them."""

    families = ("glm4v", "glm46v")

    pooled = "the downsampling convolution"

    def tower_order(self, grid: Sequence[Sequence[int]]) -> Tensor:
        """[N] which visual token of the pass each group of patches is: in order."""
        merge = self.config.vision_config.spatial_merge_size
        return torch.arange(sum(t * h * w for t, h, w in grid) // merge**2)

    def layout(self, inputs: Mapping[str, Any]) -> Layout:
        """As `LVLM.layout`.

        Raises:
            ValueError: the inputs hold a video.
        """
        if inputs.get("video_grid_thw") is not None:
            raise ValueError(
                f"{type(self.model).__name__} was given a video, whose frames stand in the prompt as pictures, and is "
                "not read yet. Give pictures."
            )
        return super().layout(inputs)

    def example(self, batch: int, words: int, height: int, width: int, frames: int | None = None) -> dict[str, Tensor]:
        """As `LVLM.example`; the picture is brought to whole tokens, at least one, and not resized otherwise."""
        if frames is not None:
            return super().example(batch, words, height, width, frames)  # refuses it
        vision = self.config.vision_config
        merge, deep = vision.spatial_merge_size, vision.temporal_patch_size
        rows, columns = (max(round(n / (vision.patch_size * merge)), 1) for n in (height, width))
        start, end = self.config.image_start_token_id, self.config.image_end_token_id
        found = self.prompt(batch, [start, *[self._token("image")] * (rows * columns), end], words)
        pixels = self.noise(batch * rows * columns * merge**2, vision.in_channels * deep * vision.patch_size**2)
        grid = torch.tensor([(1, rows * merge, columns * merge)] * batch, device=self.device)
        kinds = self.visual_mask(found).int()
        return found | {"mm_token_type_ids": kinds, "pixel_values": pixels, "image_grid_thw": grid}
