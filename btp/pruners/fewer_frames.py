"""Control: whole frames of a clip, evenly spaced, as many as the budget allows."""

from __future__ import annotations

import torch
from torch import Tensor

from btp.core.pruner import ScorePruner, Tokens
from btp.core.schedule import Stage
from btp.core.signals import Signals


class FewerFrames(ScorePruner):
    """Takes frames in an order in which the first few are spread evenly over the clip, each row by row."""

    def score(self, tokens: Tokens, signals: Signals, stage: Stage) -> Tensor:
        """[B, N], higher = keep: frames that come earlier in the order, and tokens that come earlier in a frame."""
        frame = tokens.coord[..., 0].clamp(min=0)
        frames = int(frame.amax()) + 1
        rank = torch.tensor(_spread(frames), device=frame.device).argsort()
        return -(
            rank[frame] * tokens.valid.shape[1] + torch.arange(tokens.valid.shape[1], device=frame.device)
        ).double()


def _spread(frames: int) -> list[int]:
    """Every frame once: the next is the one farthest from all taken so far, the middle first."""
    taken = [(frames - 1) // 2]
    while len(taken) < frames:
        taken.append(
            max((i for i in range(frames) if i not in taken), key=lambda i: (min(abs(i - t) for t in taken), -i))
        )
    return taken
