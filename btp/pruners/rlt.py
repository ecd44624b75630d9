"""RLT: drops tubes of a clip whose pixels repeat the tube before them, in front of the first layer."""

from __future__ import annotations

import torch
from torch import Tensor

from btp.core.check_settings import check_one_of
from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import Selection
from btp.core.signals import Signal, Signals
from btp.core.site import Site
from btp.core.topk import top_k

FRONT = Site.parse("vision.layer.0")
SELECT = ("budget", "threshold")


class RLT(Pruner):
    """Run-length tokenisation: a tube is as worth keeping as it differs from the one before at its place.

    Args:
        select: budget, the stage's count of those that change most | threshold, all that change by more than
            `threshold`, as published; a stage's keep is an aim then.
        threshold: mean absolute difference of pixels, as the model gets them.

    Source: Choudhury et al. 2024, arXiv:2411.05222. Its embedding of how long a run lasts needs training, and is not
    here.
    """

    def __init__(self, *, select: str, threshold: float) -> None:
        check_one_of("pruner.method.select", select, SELECT)
        if threshold < 0:
            raise ValueError(f"pruner.method.threshold is {threshold!r}. Write a number of 0 or more.")
        self.adaptive, self.threshold = select == "threshold", threshold

    def check(self, schedule: Schedule) -> None:
        """Refuse any other stage than one in front of the first layer."""
        super().check(schedule)
        sites = [str(stage.site) for stage in schedule]
        if sites != [str(FRONT)]:
            raise ValueError(
                f"pruner 'rlt' compares pixels once, in front of the first layer, but its stages stand at "
                f"{', '.join(sites)}. Leave schedule.0.site={FRONT} alone."
            )

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """The clip itself."""
        return () if stage.withdraws_all else (Signal("pixels", FRONT),)

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Keep what changes; all of the first frames does."""
        change = self._change(tokens, signals[self.needs(stage)[0]])
        if not self.adaptive or stage.keep == 1.0:
            return Selection(top_k(change, tokens.keep_counts(stage), tokens.valid), scores=change)
        counts = tuple(max(n, 1) for n in ((change > self.threshold) & tokens.valid).sum(1).tolist())
        return Selection(top_k(change, counts, tokens.valid), scores=change, counts=counts)

    def explain(self, tokens: Tokens, signals: Signals, stage: Stage) -> dict[str, Tensor]:
        """How much each tube changes."""
        return {"change": self._change(tokens, signals[self.needs(stage)[0]])}

    def _change(self, tokens: Tokens, pixels: Tensor) -> Tensor:
        """[B, N] mean absolute difference between the first frame of a tube and the last one before it.

        Tubes of the first frames have the largest number there is. A picture is a clip of one frame.
        """
        clip = pixels.float() if pixels.dim() == 5 else pixels.float()[:, None]
        frames, rows, columns = (n + 1 for n in tokens.coord.flatten(0, 1).amax(0).tolist())
        B, F = clip.shape[:2]
        tube, high, wide = F // frames, clip.shape[-2] // rows, clip.shape[-1] // columns
        table = clip.new_full((B, frames, rows, columns), torch.finfo(clip.dtype).max)
        if frames > 1:
            gap = (
                (clip[:, tube::tube] - clip[:, tube - 1 : -1 : tube])
                .abs()
                .mean(2)[..., : rows * high, : columns * wide]
            )
            table[:, 1:] = gap.view(B, frames - 1, rows, high, columns, wide).mean((3, 5))
        at = tokens.coord.clamp(min=0)
        return table[torch.arange(B, device=at.device)[:, None], at[..., 0], at[..., 1], at[..., 2]]
