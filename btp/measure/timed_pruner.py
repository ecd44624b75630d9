"""Watches a pruner decide: how long its select takes and how much it computes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Stage
from btp.core.selection import Selection
from btp.core.signals import Signal, Signals
from btp.core.wrapper import Around
from btp.measure.clock import Clock, Sync
from btp.measure.flops import measured

Select = Callable[[Tokens, Signals, Stage], Selection]


class TimedPruner(Around):
    """A pruner that decides as the one inside it does, and can be watched meanwhile.

    Outside of `timing` and `counting` it adds nothing. Only `select` is watched: the signals it asked for
    are computed by the engine, before; which attention rows came is noted.

    Attributes:
        pruner: the method.
        seconds: durations of the selects under `timing`, in order; clear it between prefills.
        flops: operations of the selects under `counting`, a multiply-add counted as two.
        attention: attention signals and previews that came under `counting`, with their number of query rows R.
    """

    def __init__(self, pruner: Pruner) -> None:
        super().__init__(pruner)
        self.seconds: list[float] = []
        self.flops = 0
        self.attention: dict[Signal, int] = {}
        self._select: Select = pruner.select

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """The method's own, watched."""
        return self._select(tokens, signals, stage)

    @contextmanager
    def timing(self, sync: Sync, now: Clock = time.perf_counter) -> Iterator[TimedPruner]:
        """Time every select from here to the end of the block; waits for the device around each."""

        def select(tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
            sync()
            start = now()
            decided = self.pruner.select(tokens, signals, stage)
            sync()
            self.seconds.append(now() - start)
            return decided

        with self._watched(select):
            yield self

    @contextmanager
    def counting(self) -> Iterator[TimedPruner]:
        """Count the operations of every select from here to the end of the block, from 0."""
        self.flops = 0
        self.attention = {}

        def select(tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
            for signal, value in signals.items():
                if signal.kind in ("attention", "preview"):
                    self.attention[signal] = value.shape[2]  # [B, H, R, N]
            decided: list[Selection] = []
            self.flops += measured(lambda: decided.append(self.pruner.select(tokens, signals, stage)))
            return decided[0]

        with self._watched(select):
            yield self

    @contextmanager
    def _watched(self, select: Select) -> Iterator[None]:
        before, self._select = self._select, select
        try:
            yield
        finally:
            self._select = before


def timed(pruner: Pruner) -> TimedPruner:
    """Wrap a pruner so that its selection can be timed and counted; hand the wrapper to the engine."""
    return pruner if isinstance(pruner, TimedPruner) else TimedPruner(pruner)
