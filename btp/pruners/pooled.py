"""Control: neighbouring tokens of a frame become their mean, everywhere alike."""

from __future__ import annotations

import torch

from btp.core.check_settings import check_whole
from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Stage
from btp.core.selection import MergePlan, Selection
from btp.core.signals import Signals
from btp.core.topk import top_k


class Pooled(Pruner):
    """Average pooling of every frame and picture: squares of stride x stride tokens become one, smaller ones at the
    right and lower edge. Tokens off the grid stay.

    Args:
        stride: tokens along a side that become one.
    """

    adaptive = True

    def __init__(self, *, stride: int) -> None:
        check_whole("pruner.method.stride", stride, "a whole number from 2 on", least=2)
        self.stride = stride

    def needs_grid(self, stage: Stage) -> bool:
        """It goes by rows and columns."""
        return True

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Merge each square into its first token; nothing where the stage keeps all."""
        B, N = tokens.valid.shape
        every = torch.arange(N, device=tokens.valid.device).expand(B, N)
        if stage.keep == 1.0:
            counts = tuple(tokens.valid.sum(1).tolist())
            return Selection(every[:, : max(counts)].masked_fill(~tokens.valid[:, : max(counts)], -1), counts=counts)
        frame, row, column = tokens.coord.unbind(-1)
        # of two tokens of one square the codes are equal; those off the grid have one each
        square = torch.stack([tokens.image, frame, row // self.stride, column // self.stride], -1)
        square = torch.where((frame >= 0)[..., None], square, torch.stack([-1 - every] * 4, -1))
        same = torch.zeros(B, N, dtype=torch.long, device=every.device)
        for b in range(B):
            same[b] = square[b].unique(dim=0, return_inverse=True)[1]
        first = torch.full((B, N + 1), N, device=every.device).scatter_reduce(1, same, every, "amin")
        target = first.gather(1, same).masked_fill(~tokens.valid, -1)
        stays = (target == every) & tokens.valid
        counts = tuple(stays.sum(1).tolist())
        keep = top_k(stays.to(tokens.hidden.dtype), counts, tokens.valid)
        weight = tokens.size.to(torch.promote_types(tokens.hidden.dtype, torch.float32))
        return Selection(keep, MergePlan(target, weight), counts=counts)
