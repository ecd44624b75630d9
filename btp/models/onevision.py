"""LLaVA-OneVision: tiles that are resized where they are many, several pictures of one tile each, pooled videos."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from btp.core.tower import Packed
from btp.models.anyres import BLEND, NEWLINE, AnyRes
from btp.models.packed import OFF, frames

_NO_LIMIT = "anyres_max_1000000"


class LlavaOneVision(AnyRes):
    """As AnyRes, with three rules more.

    A mosaic of more tokens than the limit in the config's vision_aspect_ratio (anyres_max_9: nine tiles, and a fifth
    more) is resized bilinearly: its tokens lie on the resized grid and are blends, none of the tower's. Where a prompt
    has several pictures, each is one tile with a newline behind it. A video's frames are pooled, bilinearly too, and
    one newline ends it.
    """

    blends = (
        "mosaics of more tiles than the config's vision_aspect_ratio has room for are resized, and the frames of a "
        "video pooled. Smaller pictures, or several in one prompt, are not resized"
    )

    def packing(self, kind: str, arguments: Mapping[str, Any]) -> Sequence[Packed] | None:
        """One entry per picture or video."""
        if kind == "image":
            return super().packing(kind, arguments)
        pixels = arguments.get("pixel_values_videos")
        if pixels is None:
            return None
        videos, count = pixels.shape[:2]
        side = math.ceil(self.side / 2)
        coord = torch.cat([frames(count, side, side), torch.full((1, 3), OFF)])
        return [Packed(coord, torch.full_like(coord[:, 0], OFF))] * videos

    def tiles(self, sizes: Sequence[Sequence[int]], arguments: Mapping[str, Any]) -> list[int]:
        """One where a row has several pictures."""
        found = super().tiles(sizes, arguments)
        rows = arguments.get("batch_num_images")
        if rows is None:
            return found
        alone = [n == 1 for n in rows.tolist() for _ in range(n)]
        return [n if cut else 1 for n, cut in zip(found, alone, strict=True)]

    def pack(self, numbers: list[Tensor], sizes: list[list[int]], arguments: Mapping[str, Any]) -> list[Tensor]:
        """As AnyRes; a picture's mosaic is all BLEND where the limit changes anything."""
        limit = arguments.get("vision_aspect_ratio") or self.config.vision_aspect_ratio
        newline = torch.full((1,), float(NEWLINE), dtype=torch.float64)
        packer = self.model.model.pack_image_features
        limited, whole = (packer(numbers, sizes, newline, ratio)[0] for ratio in (limit, _NO_LIMIT))
        found = []
        for few, every in zip(limited, whole, strict=True):
            tokens = few[:, 0]
            if not torch.equal(few, every):
                blended = tokens.masked_fill(tokens != NEWLINE, BLEND)
                tokens = torch.cat([tokens[: self.side**2], blended[self.side**2 :]])
            found.append(tokens.long())
        return found

    def example(self, batch: int, words: int, height: int, width: int, frames: int | None = None) -> dict[str, Tensor]:
        """As AnyRes, or a video whose frames are resized to a tile, whatever their size."""
        if frames is None:
            return super().example(batch, words, height, width)
        edge = self.config.vision_config.image_size
        inputs = {"pixel_values_videos": self.noise(batch, frames, 3, edge, edge)}
        return self.prompt(batch, self.placeholders("video", inputs, batch), words) | inputs
