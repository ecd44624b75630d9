"""Projector outputs of video frames, before the host pools them, over any number of passes."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from btp.core.host import Host
from btp.core.signals import Signal


class ProjectedFrames(threading.local):
    """Collects projector outputs while videos are encoded, until their prompt has run.

    Args:
        host: the model.
        signals: all declared signals; nothing is looked at where none is of kind projected.
    """

    def __init__(self, host: Host, signals: Iterable[Signal]) -> None:
        self._host = host
        self._needed = any(signal.kind == "projected" for signal in signals)
        self._parts: list[Tensor] = []
        self._video = False  # whether what passes is a video's
        self._which: tuple[tuple[int, ...], tuple[int, ...]] | None = None  # frames of each video, which of them

    def open(self, undo: ExitStack) -> None:
        """Register the hook."""
        if not self._needed:
            return
        assert self._host.projector is not None  # held by check_signal
        undo.callback(self._host.projector.register_forward_hook(self._behind).remove)
        undo.callback(self._parts.clear)

    def encoding(self, kind: str) -> None:
        """Pictures ("image") or videos ("video") are about to be encoded."""
        self._video = kind == "video"

    def begin(self, inputs: Mapping[str, Any]) -> None:
        """A prompt enters the model: with features that were encoded before, or about to be."""
        encoded = inputs.get("encoded", {}).get("video")
        self._which = None
        if encoded is None or not self._needed:
            self._parts.clear()
            return
        pixels = encoded.arguments["pixel_values_videos"]
        sizes = encoded.arguments.get("frames") or (pixels.shape[1],) * len(pixels)
        self._which = tuple(sizes), encoded.which

    def end(self) -> None:
        """The prompt has gone through."""
        self._parts.clear()

    def seen(self) -> Tensor:
        """[F, P, D] of the prompt's videos in their order; F is 0 where it has none.

        Raises:
            RuntimeError: other frames passed the projector while the engine was attached.
        """
        if not self._parts and self._which is None:  # no video among the pictures
            return torch.zeros(0, 0, self._host.hidden_size, device=self._host.model.device)  # type: ignore[arg-type]
        frames = torch.cat(self._parts) if self._parts else None
        if frames is None or (self._which is not None and sum(self._which[0]) != len(frames)):
            found = 0 if frames is None else len(frames)
            raise RuntimeError(
                f"A method looks at the frames of the prompt's videos behind the projector, but {found} passed it "
                "while the engine was attached. Encode them inside the attach, right before their prompt, or pass "
                "pixel_values_videos in place of ready features."
            )
        if self._which is None or self._which[1] == tuple(range(len(self._which[0]))):
            return frames
        parts = frames.split(self._which[0])
        return torch.cat([parts[i] for i in self._which[1]])

    def _behind(self, module: Any, args: tuple, output: Tensor) -> None:
        if self._video:
            self._parts.append(output)
