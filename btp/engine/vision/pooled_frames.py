"""Signals of a vision tower whose pictures are handed on as they are and the frames of videos pooled: LLaVA-OneVision.

Behind the projector such a host makes fewer tokens of a frame, each a blend of several patches, so that nothing can be
cut there. What was seen of the patches is blended as they are, by the host's own function: attention, queries, keys
and hidden states alike. A long video passes the tower some frames at a time; what is left of each is one number, or one
vector, for a token and head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from btp.core.host import Host
from btp.core.signals import Signal
from btp.engine.checks.plan import PlannedStage
from btp.engine.checks.signals import check_frames
from btp.engine.decide import Decider, Decision
from btp.engine.decoder.prefill import Run
from btp.engine.vision.passed_frames import PassedFrames
from btp.engine.vision.stream import VisionStream
from btp.engine.vision.tower_pass import AXIS

_SHOWN = {"image": "pixel_values", "video": "pixel_values_videos"}


class PooledFrames(VisionStream):
    """As VisionStream for pictures; of the frames of videos the signals are seen, blended.

    Args:
        host: the model; its `pool_frames` makes [F, n, D] of [F, patches, D].
        decider: asks the pruner.
        plan: all stages.
        signals: all declared signals.
        frames: keeps what was seen of frames until their prompt has run.
    """

    def __init__(
        self,
        host: Host,
        decider: Decider,
        plan: Iterable[PlannedStage],
        signals: Iterable[Signal],
        frames: PassedFrames,
    ) -> None:
        super().__init__(host, decider, plan, signals)
        self._frames = frames
        self._shows_video = False  # the prompt under way
        self._each = 0  # visual tokens of a frame

    def encoding(self, kind: str, arguments: Mapping[str, Any]) -> None:
        """Pictures or videos are about to be encoded.

        Raises:
            ValueError: a stage or signal cannot be followed there.
        """
        if kind == "video":
            self._check_video()
            self._coming = None
        else:
            super().encoding(kind, arguments)

    def begin(self, inputs: Mapping[str, Any]) -> None:
        """A prompt enters the model, perhaps with features that were encoded before.

        Raises:
            ValueError: the batch has pictures and videos, or videos that a stage or signal cannot follow.
        """
        super().begin(inputs)
        given = inputs.get("mm_encoder_outputs") or {}
        shown = [k for k, pixels in _SHOWN.items() if given.get(k) is not None or inputs.get(pixels) is not None]
        self._shows_video = self.needed and "video" in shown
        if not self._shows_video:
            return
        if len(shown) > 1:
            raise ValueError(
                "The batch has pictures and videos, and a stage or signal of the vision tower was asked for. Where the "
                "frames of a video are pooled and pictures are not, one kind is followed at a time: put them into "
                "batches of their own, or use a method that works in the language model."
            )
        self._check_video()

    def seen(self, signal: Signal) -> Tensor:
        """A signal as a stage of the language model gets it: per picture, or frame, over all its tokens."""
        found = self._frames.of(signal) if self._shows_video else None
        return super().seen(signal) if found is None else found

    def withdrawn(self, run: Run) -> tuple[Decision, bool] | None:
        """What leaves the prompt because it left in the tower. Of videos nothing does; each token is told its frame.

        Raises:
            RuntimeError: the pictures or frames of the prompt did not pass the tower under these hooks.
        """
        if not self._shows_video or not max(run.ledger.total):
            return super().withdrawn(run)
        seen = self._frames.of(self._signals[0])
        frames = 0 if seen is None else len(seen)
        of_frame = run.layout.visual & (run.layout.coord[..., 1] >= 0)  # a newline is of none
        if int(of_frame.sum()) != frames * self._each or not frames:
            raise RuntimeError(
                f"The prompt has {int(of_frame.sum())} visual tokens of frames, but {frames} frames of {self._each} "
                "passed the vision tower while the engine was attached, so a signal there shows nothing of them. Pass "
                "pixel_values_videos in place of ready features."
            )
        number = (of_frame.flatten().cumsum(0) - 1).view_as(of_frame).masked_fill(~of_frame, -1)
        run.layout, run.per_picture = replace(run.layout, source=number), self._each
        return None

    def _check_video(self) -> None:
        pruner = self._decider.pruner
        stages = [(planned.index, planned.stage) for planned in self._plan]
        check_frames(self._host, stages, self._signals, "none" if pruner is None else pruner.name)

    def _behind_projector(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        if not self._frames.video:
            return super()._behind_projector(module, args, output)
        assert self._pictures is not None  # held in front of the projector
        for signal in self._signals:
            found = self._pooled(signal, self._sight(self._pictures, signal))
            self._frames.add(signal, found)
            self._each = found.shape[AXIS[signal.kind]] if signal.rows != "all" else self._each
        self._pictures = None
        return output

    def _pooled(self, signal: Signal, x: Tensor) -> Tensor:
        """What was seen of patches, of visual tokens; rows that are no patches stay in front where all were asked."""
        axis, front = AXIS[signal.kind], self._host.towers["vision"].fixed_count if signal.rows == "all" else 0
        lead, patches = x.narrow(axis, 0, front), x.narrow(axis, front, x.shape[axis] - front)
        patches = patches.movedim(axis, 1)  # [F, patches, ...]
        tokens = self._host.pool_frames(patches.flatten(2))  # type: ignore[attr-defined]
        return torch.cat([lead, tokens.unflatten(2, patches.shape[2:]).movedim(1, axis)], axis)
