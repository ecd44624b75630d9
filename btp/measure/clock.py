"""Paired latency measurement: callables in one process, in turns, so that drift hits all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

Clock = Callable[[], float]
Sync = Callable[[], None]


@dataclass(frozen=True)
class Spread:
    """Median and percentiles of a series of durations, interpolated linearly."""

    median_ms: float
    p10_ms: float
    p90_ms: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        """Of durations in seconds, at least one."""
        p10, median, p90 = np.percentile(np.asarray(seconds) * 1e3, [10, 50, 90]).tolist()
        return cls(median, p10, p90)


@dataclass(frozen=True)
class Side:
    """A callable to time.

    Attributes:
        run: what is timed.
        around: makes a context that is entered before the clock starts and left after it stopped, so that
            attaching hooks costs nothing on the clock.
    """

    run: Callable[[], object]
    around: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True)
class Quotient:
    """Candidate time over baseline time, from pairs that ran side by side; below 1 the candidate is faster.

    Attributes:
        median: Median of the quotients of all pairs; None where a baseline is not above 0, as a difference of two
            durations can be in noise.
        low, high: interval that holds the true median with 95 % confidence; None for fewer than six pairs.
        pairs: Number of pairs.
    """

    median: float | None
    low: float | None
    high: float | None
    pairs: int

    @classmethod
    def of(cls, baseline: Sequence[float], candidate: Sequence[float]) -> Quotient:
        """Of two series of durations, pair by pair."""
        if min(baseline) <= 0:
            return cls(None, None, None, len(baseline))
        each = np.asarray(candidate) / np.asarray(baseline)
        low, high = median_interval(each.tolist()) or (None, None)
        return cls(float(np.median(each)), low, high, len(each))


@dataclass(frozen=True)
class Paired:
    """Two sides and their comparison."""

    baseline: Spread
    candidate: Spread
    candidate_over_baseline: Quotient

    @classmethod
    def of(cls, baseline: Sequence[float], candidate: Sequence[float]) -> Paired:
        """Of two series of durations in seconds, pair by pair."""
        return cls(Spread.of(baseline), Spread.of(candidate), Quotient.of(baseline, candidate))


def paired(
    baseline: Side,
    candidate: Side,
    *,
    repeats: int,
    warmup: int,
    sync: Sync,
    now: Clock = time.perf_counter,
) -> Paired:
    """Time two sides in turns: A B, B A, A B, ...; arguments as `alternate`."""
    sides = {"baseline": baseline, "candidate": candidate}
    seconds = alternate(sides, repeats=repeats, warmup=warmup, sync=sync, now=now)
    return Paired.of(seconds["baseline"], seconds["candidate"])


def alternate(
    sides: Mapping[str, Side],
    *,
    repeats: int,
    warmup: int,
    sync: Sync,
    now: Clock = time.perf_counter,
) -> dict[str, list[float]]:
    """Run all sides once per round, every other round in reverse, which cancels a steady drift.

    Args:
        sides: what to time, by name.
        repeats: timed rounds; an even number balances the order.
        warmup: rounds before them that are run and not kept.
        sync: waits for the device; called before the clock starts and before it stops.
        now: reads the clock, in seconds.

    Returns:
        Seconds of each side, one per timed round, in the order of the rounds.

    Raises:
        ValueError: repeats is below 1 or warmup below 0.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats is {repeats} and warmup is {warmup}. Time at least one round, after none or more.")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(-warmup, repeats):
        for name in list(sides) if turn % 2 == 0 else reversed(list(sides)):
            took = _time(sides[name], sync, now)
            if turn >= 0:
                seconds[name].append(took)
    return seconds


def _time(side: Side, sync: Sync, now: Clock) -> float:
    with side.around():
        sync()
        start = now()
        side.run()
        sync()
        return now() - start


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Interval for the median from order statistics: no assumption about the distribution.

    Returns:
        (low, high), two of the values; None where there are too few for this confidence (below 6 for 95 %).
    """
    found = stats.quantile_test(np.asarray(values, dtype=float), p=0.5).confidence_interval(confidence)
    low, high = float(found.low), float(found.high)
    return None if math.isnan(low) or math.isnan(high) else (low, high)


def synchroniser(device: torch.device) -> Sync:
    """The device's synchronise function; does nothing on a CPU."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None
