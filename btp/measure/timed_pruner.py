"""Time and operations of a pruner's select (or evict)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Stage
from btp.core.selection import Selection
from btp.core.signals import Signal, Signals
from btp.core.site import Site
from btp.core.slots import Slots, SlotSelection
from btp.core.wrapper import Around
from btp.measure.clock import Clock, Sync
from btp.measure.flops import measured

Watch = Callable[[Callable[[], Any], Signals, Stage], Any]


class TimedPruner(Around):
    """A pruner that decides as the one inside it does, and can be watched meanwhile.

    Outside of `timing` and `counting` it adds nothing. Only `select`, and `evict` of a method of the cache, is watched:
    the signals it asked for are computed by the engine, before; which attention rows came is noted.

    Attributes:
        pruner: the method.
        seconds: durations of the decisions under `timing`, in order; clear it between prefills.
        flops: operations of the decisions under `counting`, a multiply-add counted as two.
        asked: decisions of each site under `counting`.
        attention: attention signals and previews that came under `counting`, with their number of query rows R.
    """

    def __init__(self, pruner: Pruner) -> None:
        super().__init__(pruner)
        self.seconds: list[float] = []
        self.flops = 0
        self.asked: Counter[Site] = Counter()
        self.attention: dict[Signal, int] = {}
        self._watch: Watch = lambda decide, signals, stage: decide()
        if hasattr(pruner, "evict"):  # by this the engine knows methods of the cache
            self.evict = self._evict

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """The method's own, watched."""
        return self._watch(lambda: self.pruner.select(tokens, signals, stage), signals, stage)

    def _evict(self, slots: Slots, signals: Signals, stage: Stage) -> SlotSelection:
        return self._watch(lambda: self.pruner.evict(slots, signals, stage), signals, stage)  # type: ignore[attr-defined]

    @contextmanager
    def timing(self, sync: Sync, now: Clock = time.perf_counter) -> Iterator[TimedPruner]:
        """Time every decision from here to the end of the block; waits for the device around each."""

        def watch(decide: Callable[[], Any], signals: Signals, stage: Stage) -> Any:
            sync()
            start = now()
            decided = decide()
            sync()
            self.seconds.append(now() - start)
            return decided

        with self._watched(watch):
            yield self

    @contextmanager
    def counting(self) -> Iterator[TimedPruner]:
        """Count the operations of every decision from here to the end of the block, from 0."""
        self.flops = 0
        self.asked, self.attention = Counter(), {}

        def watch(decide: Callable[[], Any], signals: Signals, stage: Stage) -> Any:
            self.asked[stage.site] += 1
            for signal, value in signals.items():
                if signal.kind in ("attention", "preview"):
                    most = max(value.shape[2], self.attention.get(signal, 0))  # [B, H, R, N]; a step has one row
                    self.attention[signal] = most
            decided: list[Any] = []
            self.flops += measured(lambda: decided.append(decide()))
            return decided[0]

        with self._watched(watch):
            yield self

    @contextmanager
    def _watched(self, watch: Watch) -> Iterator[None]:
        before, self._watch = self._watch, watch
        try:
            yield
        finally:
            self._watch = before


def timed(pruner: Pruner) -> TimedPruner:
    """Wrap a pruner so that its selection can be timed and counted; hand the wrapper to the engine."""
    return pruner if isinstance(pruner, TimedPruner) else TimedPruner(pruner)
