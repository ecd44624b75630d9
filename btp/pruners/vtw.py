"""VTW: all visual tokens leave in front of one layer, because the text has taken in what they hold."""

from __future__ import annotations

from btp.core.schedule import Schedule
from btp.pruners.withdraw import Withdraw


class VTW(Withdraw):
    """Visual tokens withdrawal. Decides nothing: its only stage keeps 0, and the layer is all there is to find.

    `positions: original` leaves a hole in the positions of the text, `renumber` closes it from that layer on.

    Source: Lin et al. 2024, arXiv:2405.05803, where the layer is found by `btp.ops.kl_search`. The released code
    has both kinds of positions and leaves the hole by default.
    """

    def check(self, schedule: Schedule) -> None:
        """Refuse anything but one withdrawal in the decoder."""
        super().check(schedule)
        for i, stage in enumerate(schedule):
            if stage.site.tower != "llm" or stage.site.kind == "cache":
                raise ValueError(
                    f"schedule.{i}.site is {stage.site}, but pruner 'vtw' withdraws between decoder layers. "
                    f"Set schedule.{i}.site to llm.layer.N."
                )
