"""Control: keeps whole frames, as if a clip had fewer of them."""

from __future__ import annotations

import torch
from torch import Tensor

from btp.core.keep import on_device
from btp.core.pruner import ScorePruner, Tokens
from btp.core.schedule import Stage
from btp.core.signals import Signals


class FewerFrames(ScorePruner):
    """Keeps frames that lie evenly in time, each whole but for the last one that is taken.

    A frame is what shares the first number of `coord`: one picture, or the frames of one tube. Tokens off the grid go
    first. What is kept depends on nothing but numbers of tokens.
    """

    def score(self, tokens: Tokens, signals: Signals, stage: Stage) -> Tensor:
        """[B, N] minus the turn in which a token's frame is taken; of one frame, the first in raster order."""
        frame = tokens.coord[..., 0]
        rows = []
        for place, valid, count in zip(frame, tokens.valid, tokens.keep_counts(stage), strict=True):
            there = place[valid & (place >= 0)]
            frames, sizes = there.unique(return_counts=True)
            wanted = -(-count // int(sizes.max())) if len(sizes) else 0
            turn = torch.full((int(frame.max()) + 2,), len(frames), device=frame.device)
            order = _spread(len(frames), wanted)
            turn[frames[on_device(order, frame.device, torch.long)]] = torch.arange(len(order), device=frame.device)
            rows.append(-turn[place])  # -1, off the grid, reads the last entry, which no frame has
        return torch.stack(rows).to(tokens.hidden.dtype)


def _spread(total: int, wanted: int) -> list[int]:
    """`wanted` of `total` places, each the middle of an equal part, and then the others."""
    first = [int((2 * i + 1) * total / (2 * wanted)) for i in range(min(wanted, total))] if wanted else []
    return [*first, *(i for i in range(total) if i not in first)]
