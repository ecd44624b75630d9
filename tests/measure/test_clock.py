"""Turns, pairs and statistics of latency, with a clock that tests move."""

from contextlib import contextmanager

import pytest
import torch

from btp.measure.clock import Paired, Quotient, Side, Spread, alternate, median_interval, paired, synchroniser


class Bench:
    """A clock and a log; runs move the clock."""

    def __init__(self):
        self.time = 0.0
        self.log = []

    def now(self):
        self.log.append("now")
        return self.time

    def sync(self):
        self.log.append("sync")

    def side(self, name, seconds):
        """A run that takes `seconds` (called for each run), inside a context that takes long."""

        def run():
            self.log.append(name)
            self.time += seconds()

        @contextmanager
        def around():
            self.log.append(f"enter {name}")
            self.time += 100
            yield
            self.time += 100
            self.log.append(f"leave {name}")

        return Side(run, around)

    def order(self):
        """Names of the runs in order."""
        return "".join(word for word in self.log if len(word) == 1)


def test_order():
    """A B, B A, A B, B A behind one round of warm-up, which is not kept."""
    bench = Bench()
    sides = {"A": bench.side("A", lambda: 1), "B": bench.side("B", lambda: 2)}
    found = alternate(sides, repeats=4, warmup=1, sync=bench.sync, now=bench.now)
    assert bench.order() == "BA" + "ABBAABBA"
    assert found == {"A": [1.0] * 4, "B": [2.0] * 4}


def test_what_is_on_the_clock():
    """The context is entered before the clock starts; the device is waited for before start and stop."""
    bench = Bench()
    alternate({"A": bench.side("A", lambda: 1)}, repeats=1, warmup=0, sync=bench.sync, now=bench.now)
    assert bench.log == ["enter A", "sync", "now", "A", "sync", "now", "leave A"]


def test_drift_cancels():
    """Two equal sides on a machine that slows steadily: equal sums, and quotients around one."""
    bench = Bench()
    steps = iter(range(8))

    def slower():
        return 1 + 0.01 * next(steps)

    found = alternate(
        {"A": bench.side("A", slower), "B": bench.side("B", slower)},
        repeats=4,
        warmup=0,
        sync=bench.sync,
        now=bench.now,
    )
    assert sum(found["A"]) == pytest.approx(sum(found["B"]))
    assert found["A"] == pytest.approx([1.0, 1.03, 1.04, 1.07])


def test_paired():
    """Median, p10 and p90 per side in milliseconds; the quotient is taken pair by pair."""
    bench = Bench()
    a, b = iter([1, 2, 3, 4]), iter([2, 2, 3, 2])
    found = paired(
        bench.side("A", lambda: next(a)),
        bench.side("B", lambda: next(b)),
        repeats=4,
        warmup=0,
        sync=bench.sync,
        now=bench.now,
    )
    assert found.baseline.median_ms == 2500
    assert found.baseline.p10_ms == pytest.approx(1300)
    assert found.baseline.p90_ms == pytest.approx(3700)
    assert found.candidate.median_ms == 2000
    assert found.candidate_over_baseline == Quotient(1.0, None, None, 4)  # of 2, 1, 1, 0.5


def test_interval_by_hand():
    """Ten values: the second and the ninth bracket the median with 97.9 %, the third and eighth with 89 %."""
    assert median_interval([float(i) for i in range(10, 0, -1)]) == (2.0, 9.0)
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == (1.0, 6.0)
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0]) is None


def test_quotient_has_an_interval():
    """A candidate twice as fast in every pair, whatever the pair's own speed."""
    base = [1.0, 3.0, 2.0, 5.0, 4.0, 6.0]
    assert Quotient.of(base, [s / 2 for s in base]) == Quotient(0.5, 0.5, 0.5, 6)


def test_noise_gives_no_quotient():
    """A baseline difference of nothing or less is no divisor."""
    found = Paired.of([0.1, -0.1], [0.1, 0.1])
    assert found.candidate_over_baseline == Quotient(None, None, None, 2)
    assert found.baseline == Spread.of([0.1, -0.1])


def test_bounds():
    """No round, or fewer than none of warm-up, is refused."""
    for repeats, warmup in ((0, 1), (1, -1)):
        with pytest.raises(ValueError, match=f"repeats is {repeats} and warmup is {warmup}"):
            alternate({}, repeats=repeats, warmup=warmup, sync=lambda: None)


def test_synchroniser(monkeypatch):
    """A GPU is waited for, by its own device; a CPU has nothing to wait for."""
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    synchroniser(torch.device("cpu"))()
    assert waited == []
    synchroniser(torch.device("cuda:1"))()
    assert waited == [torch.device("cuda:1")]
