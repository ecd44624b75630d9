"""R-MeeTo: merges alike tokens of a vision state space model instead of dropping any."""

from __future__ import annotations

from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Stage
from btp.core.selection import Selection
from btp.core.signals import Signals
from btp.ops.bipartite import merge_to


class RMeeTo(Pruner):
    """Bipartite merging by the tokens' states: every second one looks for the one most like it among the others.

    A merged token stands at the place of the one it flowed into; scans know of the gaps that the others leave.

    Source: Shi et al. 2024, arXiv:2412.12496, whose models are trained again for 3 epochs behind it.
    """

    def __init__(self, *, gap: str, conv: str) -> None:
        """
        Args:
            gap, conv: as those of `btp.pruners.ssm.SSM`; none and closed close the gaps, as published.
        """
        self.alignment = {"gap": gap, "conv": conv}

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Merge until the stage's count is met."""
        counts = tokens.keep_counts(stage)
        alive = tokens.host_alive or tuple(tokens.valid.sum(1).tolist())
        keep, plan = merge_to(tokens.hidden, alive, counts, tokens.size, "raster")
        return Selection(keep, plan if counts != alive else None)
