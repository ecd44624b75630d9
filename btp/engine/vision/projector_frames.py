"""Projector outputs of video frames, before the host pools them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from btp.core.host import Host
from btp.core.signals import Signal
from btp.engine.vision.passed_frames import PassedFrames


class ProjectedFrames:
    """Looks at projector outputs while videos are encoded.

    Args:
        host: the model.
        signals: all declared signals; nothing is looked at where none is of kind projected.
        frames: keeps them until their prompt has run.
    """

    def __init__(self, host: Host, signals: Iterable[Signal], frames: PassedFrames) -> None:
        self._host, self._frames = host, frames
        self._signal = next((signal for signal in signals if signal.kind == "projected"), None)

    def open(self, undo: ExitStack) -> None:
        """Register the hook."""
        if self._signal is None:
            return
        assert self._host.projector is not None  # held by check_signal
        undo.callback(self._host.projector.register_forward_hook(self._behind).remove)

    def seen(self) -> Tensor:
        """[F, P, D] of the prompt's videos in their order; F is 0 where it has none.

        Raises:
            RuntimeError: other frames passed the projector while the engine was attached.
        """
        assert self._signal is not None  # who asks has declared it
        found = self._frames.of(self._signal)
        if found is None:  # no video among the pictures
            return torch.zeros(0, 0, self._host.hidden_size, device=self._host.model.device)  # type: ignore[arg-type]
        return found

    def _behind(self, module: Any, args: tuple, output: Tensor) -> None:
        if self._frames.video:
            self._frames.add(self._signal, output)  # type: ignore[arg-type]
