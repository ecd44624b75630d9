"""SnapKV: behind the prompt, keeps what its last rows look at, with the neighbours of what they look at most."""

from __future__ import annotations

from torch import Tensor

from btp.core.cache_pruner import ScoreSlots
from btp.core.check_settings import check_one_of
from btp.core.schedule import Schedule, Stage
from btp.core.signals import Signal, Signals
from btp.core.slots import Slots
from btp.ops.slots import of_groups, pooled, spread

POOLS = ("mean", "max")


class SnapKV(ScoreSlots):
    """A slot's score is the mean attention of the prompt's last `recent` rows, pooled over its neighbours.

    The window that looks is the one that stays: the stage's `recent`.

    Source: Li et al. 2024, arXiv:2404.14469, and its code; the mean over a group of heads is kvpress's.

    Args:
        kernel: slots that are pooled, an odd number.
        pool: mean | max.
    """

    def __init__(self, *, kernel: int, pool: str) -> None:
        if isinstance(kernel, bool) or not isinstance(kernel, int) or kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"pruner.method.kernel is {kernel!r}. Write an odd number, 1 or more.")
        check_one_of("pruner.method.pool", pool, POOLS)
        self.kernel, self.pool = kernel, pool

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """Attention of the prompt's last rows."""
        return (Signal("attention", stage.site, "window", window=stage.settings["recent"]),)

    def score(self, slots: Slots, signals: Signals, stage: Stage) -> Tensor:
        """[B, Hkv, n]; the window itself has 0, as pooling stops in front of it."""
        signal = self.needs(stage)[0]
        seen = spread(signals[signal], signals.rows_valid(signal))
        window = slots.position >= slots.length[:, None, None] - stage.settings["recent"]
        outside = (window | ~slots.valid).repeat_interleave(slots.groups, dim=1)
        return of_groups(pooled(seen.masked_fill(outside, 0.0), self.kernel, self.pool), slots.groups, mean=True)

    def check(self, schedule: Schedule) -> None:
        """Behind the prompt alone, and with a window."""
        super().check(schedule)
        for i, stage in enumerate(schedule):
            recent = stage.settings.get("recent")
            if isinstance(recent, bool) or not isinstance(recent, int) or recent < 1:
                raise ValueError(
                    f"schedule.{i}.recent is {recent!r}, but pruner {self.name!r} looks from the last rows of the "
                    "prompt, which stay. Write how many: an int, 1 or more."
                )
            if stage.phase != "prefill":
                raise ValueError(
                    f"schedule.{i}.phase is {stage.phase}, but pruner {self.name!r} chooses once, behind the prompt. "
                    "Set phase: prefill."
                )
