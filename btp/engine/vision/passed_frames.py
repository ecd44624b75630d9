"""What was seen of the frames of videos while these were encoded, over any number of passes."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from btp.core.host import Encoding
from btp.core.signals import Signal


class PassedFrames(threading.local):
    """Collects signals of frames, pass by pass, until the prompt with their videos has run.

    Attributes:
        video: what is being encoded is a video, and no picture.
    """

    def __init__(self) -> None:
        self.video = False
        self._parts: dict[Signal, list[Tensor]] = {}
        self._encoded: Encoding | None = None  # of the prompt's videos, where they came before it

    def encoding(self, kind: str) -> None:
        """Pictures ("image") or videos ("video") are about to be encoded."""
        self.video = kind == "video"

    def add(self, signal: Signal, x: Tensor) -> None:
        """What a pass showed of its frames, [F, ...]."""
        self._parts.setdefault(signal, []).append(x)

    def begin(self, inputs: Mapping[str, Any]) -> None:
        """A prompt enters the model: with features that were encoded before, or about to be."""
        self._encoded = inputs.get("encoded", {}).get("video")
        if self._encoded is None:
            self.clear()

    def clear(self) -> None:
        """Forget what was seen: the prompt has gone through."""
        self._parts.clear()

    def of(self, signal: Signal) -> Tensor | None:
        """[F, ...] of the prompt's videos in their order; None where it has none.

        Raises:
            RuntimeError: other frames were encoded while the engine was attached.
        """
        parts, encoded = self._parts.get(signal), self._encoded
        if parts is None and encoded is None:
            return None
        frames = torch.cat(parts) if parts else None
        sizes = None if encoded is None else _frames_each(encoded)
        if frames is None or (sizes is not None and sum(sizes) != len(frames)):
            raise RuntimeError(
                "A method looks at the frames of the prompt's videos while they are encoded, but "
                f"{0 if frames is None else len(frames)} were encoded inside the attach since the prompt before. "
                "Encode them right before their prompt (use_cache=False runs it again in every step), or pass "
                "pixel_values_videos in place of ready features."
            )
        if encoded is None or sizes is None or encoded.which == tuple(range(len(sizes))):
            return frames
        each = frames.split(sizes)
        return torch.cat([each[i] for i in encoded.which])


def _frames_each(encoded: Encoding) -> tuple[int, ...]:
    """Frames of each encoded video."""
    pixels = encoded.arguments["pixel_values_videos"]
    return tuple(encoded.arguments.get("frames") or (pixels.shape[1],) * len(pixels))
