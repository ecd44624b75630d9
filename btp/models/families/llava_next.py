"""LLaVA-NeXT and its like: a picture passes the tower in tiles, which are put together again and cut to its shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from btp.core.host import Packed
from btp.models.families.packed import OFF, PackedLVLM, frames

NEWLINE, BLEND = -1, -2  # in place of a number


class AnyRes(PackedLVLM):
    """Pictures of any resolution.

    The tower sees the whole picture, shrunk to one tile, and then its tiles row by row. The prompt has the whole
    picture first: frame 0, with a tile's rows and columns. Frame 1 is the mosaic of the tiles without their padding,
    with rows and columns of its own; a newline behind each of its rows lies on no grid and is no token of the tower.
    Where each token comes from is found by packing numbers: the model's own function puts them together as it does
    features.
    """

    families = ("llava_next",)

    @property
    def side(self) -> int:
        """Rows and columns of a tile."""
        return self.config.vision_config.image_size // self.config.vision_config.patch_size

    def packing(self, kind: str, arguments: Mapping[str, Any]) -> Sequence[Packed] | None:
        """One entry per picture."""
        if kind != "image" or arguments.get("pixel_values") is None:
            return None
        sizes = arguments["image_sizes"].tolist()
        tiles, each = self.tiles(sizes, arguments), self.side**2
        numbers = torch.arange(sum(tiles) * each, dtype=torch.float64).view(-1, each, 1)
        return [self._entry(packed) for packed in self.pack(list(numbers.split(tiles)), sizes, arguments)]

    def tiles(self, sizes: Sequence[Sequence[int]], arguments: Mapping[str, Any]) -> list[int]:
        """How many tiles each picture of (height, width) pixels makes, the whole picture included."""
        config = self.config
        return [
            image_size_to_num_patches(list(size), config.image_grid_pinpoints, config.vision_config.image_size)
            for size in sizes
        ]

    def pack(self, numbers: list[Tensor], sizes: list[list[int]], arguments: Mapping[str, Any]) -> list[Tensor]:
        """[T] numbers as each picture's tokens come to the prompt, with NEWLINE, and BLEND for what is several.

        Args:
            numbers: [tiles, N, 1] of each picture.
            sizes: (height, width) of each picture in pixels.
            arguments: Arguments of the encoder.
        """
        newline = torch.full((1,), float(NEWLINE), dtype=torch.float64)
        strategy = self.config.vision_feature_select_strategy
        packed, _ = self.base.pack_image_features(numbers, sizes, strategy, image_newline=newline)
        return [tokens[:, 0].long() for tokens in packed]

    def example(self, batch: int, words: int, height: int, width: int, frames: int | None = None) -> dict[str, Tensor]:
        """As LVLM, with the tiles that a picture of this size is cut into.

        Raises:
            ValueError: the family takes no video.
        """
        if frames is not None:
            return super().example(batch, words, height, width, frames)
        sizes = torch.tensor([[height, width]] * batch)
        edge = self.config.vision_config.image_size
        pixels = self.noise(batch, self.tiles([[height, width]], {})[0], 3, edge, edge)
        inputs = {"pixel_values": pixels, "image_sizes": sizes}
        made = self.prompt(batch, self.placeholders("image", inputs, batch), words)
        return made | inputs | {"image_sizes": sizes.to(self.device)}

    def _entry(self, numbers: Tensor) -> Packed:
        """A picture from the numbers that its tokens bear."""
        each = self.side**2
        mosaic = numbers[each:]
        newline = mosaic == NEWLINE
        width = len(mosaic) // max(int(newline.sum()), 1)  # of a row with its newline
        at = torch.arange(len(mosaic))
        coord = torch.stack([torch.ones_like(at), at // width, at % width], dim=1).masked_fill(newline[:, None], OFF)
        return Packed(torch.cat([frames(1, self.side, self.side), coord]), numbers.clamp(min=OFF))
