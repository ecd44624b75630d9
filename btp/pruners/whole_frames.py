"""Control: keeps some frames of each video, whole, whatever a budget says."""

from __future__ import annotations

import torch
from torch import Tensor

from btp.core.check_settings import check_whole
from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Stage
from btp.core.selection import Selection
from btp.core.signals import Signals
from btp.core.topk import top_k


class WholeFrames(Pruner):
    """Keeps the middle of each of `frames` equal parts of a video; a shorter one keeps all of its frames.

    Tokens off the grid (newlines, class tokens) go. A picture counts as a video of as many frames as it has views.

    Args:
        frames: Frames that stay of each picture or video.
    """

    adaptive = True

    def __init__(self, *, frames: int) -> None:
        check_whole("pruner.method.frames", frames, "a whole number from 1 on")
        self.frames = frames

    def needs_grid(self, stage: Stage) -> bool:
        """It goes by frames."""
        return True

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Keep whole frames; all where the stage keeps all."""
        frame = tokens.coord[..., 0]
        chosen = tokens.valid & (frame >= 0)
        if stage.keep == 1.0:
            chosen = tokens.valid
        else:
            total = _frames_of(frame, tokens.image, tokens.valid)
            part = (frame * self.frames).div(total, rounding_mode="floor")  # of the clip's equal parts
            middle = ((2 * part + 1) * total).div(2 * self.frames, rounding_mode="floor")
            chosen &= (frame == middle) | (total <= self.frames)
        counts = tuple(chosen.sum(1).tolist())
        return Selection(top_k(chosen.to(tokens.hidden.dtype), counts, tokens.valid), counts=counts)


def _frames_of(frame: Tensor, image: Tensor, valid: Tensor) -> Tensor:
    """[B, N] frames of the picture or video that each token is of, 1 or more."""
    image = image.masked_fill(~valid, 0).clamp(min=0)
    most = torch.zeros(len(frame), int(image.max()) + 1 if image.numel() else 1, dtype=frame.dtype, device=frame.device)
    most = most.scatter_reduce(1, image, frame.masked_fill(~valid, 0), "amax")
    return most.gather(1, image) + 1
