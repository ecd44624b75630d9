"""Control: withdraws all visual tokens at one layer, so that answers rest on what was read before it."""

from __future__ import annotations

from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Schedule, Stage
from btp.core.selection import Selection
from btp.core.signals import Signals


class Withdraw(Pruner):
    """Decides nothing: its schedule says `keep: 0`.

    Source: Lin et al. 2024, arXiv:2405.05803 (VTW), where the layer is searched; here it is written or swept.
    """

    def check(self, schedule: Schedule) -> None:
        """Refuse a stage that keeps something."""
        super().check(schedule)
        for i, stage in enumerate(schedule):
            if not stage.withdraws_all:
                raise ValueError(
                    f"schedule.{i}.keep is {stage.keep}, but pruner {self.name!r} cannot choose among tokens. "
                    f"Set schedule.{i}.keep to 0, or take another pruner."
                )

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Never asked: nothing stays.

        Raises:
            RuntimeError: the schedule was not checked.
        """
        raise RuntimeError(f"pruner {self.name!r} was asked to choose at {stage.site}. Call check(schedule) first.")
