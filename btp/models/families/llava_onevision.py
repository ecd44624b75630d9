"""LLaVA-OneVision: tiles that are resized where they are many, several pictures of one tile each, pooled videos."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from btp.models.families.llava_next import BLEND, NEWLINE
from btp.models.families.packed import OFF
from btp.models.families.packed import frames as frames_on
from btp.models.families.pooled_video import PooledVideos

_NO_LIMIT = "anyres_max_1000000"


class LlavaOneVision(PooledVideos):
    """As AnyRes, with three rules more.

    A mosaic of more tokens than the limit in the config's vision_aspect_ratio (anyres_max_9: nine tiles, and a fifth
    more) is resized bilinearly: its tokens lie on the resized grid and are blends, none of the tower's. Where a prompt
    has several pictures, each is one tile with a newline behind it. A video's frames are pooled, bilinearly too, and
    one newline ends it.

    Attributes:
        video_pooling: what joins patches into a visual token of a video, for messages.
    """

    families = ("llava_onevision",)
    pools_projected = True
    video_pooling = "interpolation of a video's frames"

    blends = (
        "mosaics of more tiles than the config's vision_aspect_ratio has room for are resized. Smaller pictures, or "
        "several in one prompt, are not"
    )

    def video_coord(self, frames: int, pixels: Tensor) -> Tensor:
        """A grid a frame, and one newline behind them all."""
        side = math.ceil(self.side / 2)
        return torch.cat([frames_on(frames, side, side), torch.full((1, 3), OFF)])

    def pool_frames(self, x: Tensor) -> Tensor:
        """[F, n, D] the visual tokens of frames, made of something of their patches [F, patches, D]."""
        return self.base.apply_pooling(x.contiguous())

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
        packer = self.base.pack_image_features
        limited, whole = (packer(numbers, sizes, newline, ratio)[0] for ratio in (limit, _NO_LIMIT))
        found = []
        for few, every in zip(limited, whole, strict=True):
            tokens = few[:, 0]
            if not torch.equal(few, every):
                blended = tokens.masked_fill(tokens != NEWLINE, BLEND)
                tokens = torch.cat([tokens[: self.side**2], blended[self.side**2 :]])
            found.append(tokens.long())
        return found
