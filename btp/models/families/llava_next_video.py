"""LLaVA-NeXT-Video: pictures as LLaVA-NeXT, and videos whose frames are pooled in front of the projector."""

from __future__ import annotations

from torch import Tensor

from btp.models.families.packed import frames as frames_on
from btp.models.families.pooled_video import PooledVideos


class LlavaNextVideo(PooledVideos):
    """As AnyRes; a video's tokens are means of spatial_pool_stride x spatial_pool_stride patches, without newlines."""

    families = ("llava_next_video",)

    blends = "the frames of a video are pooled in front of the projector. Pictures are not"

    def video_coord(self, frames: int, pixels: Tensor) -> Tensor:
        """A grid a frame."""
        rows, columns = (n // self.config.spatial_pool_stride for n in self.picture_grid(pixels))
        return frames_on(frames, rows, columns)
