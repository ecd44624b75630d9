"""Measures methods on a CPU, one or two beside an unpruned model: a run tells all there is to time.

On a processor nothing has to be waited for, so that clocks inside of a run do not slow it, and one run of some tokens
has the prefill, the vision tower, the choice and every step behind it. Two methods and the unpruned model run in turns,
A U B, B U A, ..., so that the unpruned run stands beside each and is paid once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor

from btp.core.trace import Trace
from btp.engine.attach import attach
from btp.measure.clock import Clock, Quotient, Side, Spread, alternate
from btp.measure.cost import Subject, count
from btp.measure.flops import measured
from btp.measure.hardware import peak_above_mib
from btp.measure.phases import PhaseTimer
from btp.measure.timed_pruner import TimedPruner
from btp.models.loading.load import Loaded
from btp.results.status import UNPRUNED
from btp.runner.arms import Arm
from btp.runner.evaluation.cost import subject_of
from btp.runner.evaluation.oracle_targets import aim_nowhere

COUNTS = ("tokens_avg", "flops_visual_pdrop", "flops_prefill", "flops_prefill_measured")


@dataclass
class Watched:
    """One side's runs, in seconds: an entry for each.

    Attributes:
        prefill: to the first token, all included.
        step: of a token behind it, the median of the run's.
        vision, selection: what the tower and the choices took of the prefill.
    """

    prefill: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    vision: list[float] = field(default_factory=list)
    selection: list[float] = field(default_factory=list)


class Turns:
    """A model with one batch of inputs, and what is known of it unpruned.

    Args:
        loaded: the model, on a CPU.
        inputs: one batch.
        output: tokens that a run generates, at least 2.
        now: reads the clock, in seconds.
    """

    def __init__(self, loaded: Loaded, inputs: Mapping[str, Tensor], output: int, now: Clock) -> None:
        self.loaded, self.output, self.now = loaded, output, now
        self.rows = len(next(iter(inputs.values())))
        self.subject: Subject = subject_of(loaded, inputs)
        with attach(loaded.host) as trace:
            self.plain = measured(lambda: self.subject.generate(1))
        self.plain_bytes = sum(trace.last.cache_bytes)
        self.plain_peak = peak_above_mib(lambda: self.subject.generate(1), self.subject.device)

    @torch.inference_mode()
    def measure(self, arms: Sequence[Arm], repeats: int, warmup: int) -> Iterator[dict[str, Any]]:
        """`costs` and `unpruned` of each arm, as a run's cost.json has them, and both peaks of memory."""
        watched = {UNPRUNED: Watched()}
        sides = [(UNPRUNED, Side(lambda: self._run(watched[UNPRUNED], None), nullcontext))]
        found = []
        for at, arm in enumerate(arms):
            method = arm.build()
            aim_nowhere(method, self.rows)
            timed = TimedPruner(method) if method is not None else None
            found.append(self._count(arm, timed))
            mine = watched[str(at)] = Watched()
            around = self._around(arm, timed)
            sides.insert(at, (str(at), Side(lambda mine=mine, timed=timed: self._run(mine, timed), around)))
        alternate(dict(sides), repeats=repeats, warmup=warmup, sync=lambda: None, now=self.now)
        for series in watched.values():
            for values in (series.prefill, series.step, series.vision, series.selection):
                del values[:warmup]
        for at, counts in enumerate(found):
            yield self._cell(counts, watched[UNPRUNED], watched[str(at)])

    def _attached(self, arm: Arm, timed: TimedPruner | None) -> AbstractContextManager[Trace]:
        return attach(self.loaded.host, timed, arm.schedule)

    def _around(self, arm: Arm, timed: TimedPruner | None) -> Any:
        @contextmanager
        def around() -> Iterator[None]:
            with self._attached(arm, timed), timed.timing(lambda: None, self.now) if timed else nullcontext():
                yield

        return around

    def _count(self, arm: Arm, timed: TimedPruner | None) -> dict[str, Any]:
        """Counts and memory, each from a run of its own, which warm the method up."""
        found = count(self.subject, lambda: self._attached(arm, timed), timed, self.plain)
        with self._attached(arm, timed):
            peak = peak_above_mib(lambda: self.subject.generate(1), self.subject.device)
        return found | {"prefill_peak_mib": peak}

    def _run(self, watched: Watched, timed: TimedPruner | None) -> None:
        """One run of all tokens, with a mark at every forward of the model."""
        marks: list[float] = []
        handle = self.loaded.host.model.register_forward_pre_hook(lambda *_: marks.append(self.now()))
        vision = {} if self.subject.vision is None else {"vision": self.subject.vision}
        if timed is not None:
            timed.seconds.clear()
        try:
            with PhaseTimer(vision, lambda: None, self.now) as timer:
                start = self.now()
                self.subject.generate(self.output)
                marks.append(self.now())
        finally:
            handle.remove()
        if len(marks) != self.output + 1:
            raise RuntimeError(f"{self.output} tokens took {len(marks) - 1} forwards; one a token was expected.")
        watched.prefill.append(marks[1] - start)
        watched.step.append(median(after - before for before, after in pairwise(marks[1:])))
        watched.vision.append(sum(timer.seconds.get("vision", ())))
        watched.selection.append(sum(timed.seconds) if timed is not None else 0.0)

    def _cell(self, counts: Mapping[str, Any], plain: Watched, pruned: Watched) -> dict[str, Any]:
        held = counts["kv_bytes_per_layer"]["measured"]
        sides = {
            "costs": self._side(counts, pruned, sum(held) if held else None, counts["prefill_peak_mib"]),
            UNPRUNED: self._side(counts[UNPRUNED], plain, self.plain_bytes, self.plain_peak),
        }
        ratios = {
            "prefill_ratio": asdict(Quotient.of(plain.prefill, pruned.prefill)),
            "per_token_ratio": asdict(Quotient.of(plain.step, pruned.step)),
        }
        sides["costs"] |= ratios | {"selection_share": median(pruned.selection) / median(pruned.prefill)}
        return sides

    def _side(self, counts: Mapping[str, Any], watched: Watched, held: int | None, peak: float) -> dict[str, Any]:
        rows = self.rows
        flat = {name: counts[name] / (1 if name == "tokens_avg" else rows) for name in COUNTS}
        flat |= {"kv_mib": sum(counts["kv_bytes_per_layer"]["computed"]) / rows / 2**20}
        flat |= {"kv_mib_measured": held / rows / 2**20 if held else None, "batch": rows}
        flat |= {"peak_memory_mib": None, "prefill_peak_mib": peak}
        for name, series in (("prefill_ms", watched.prefill), ("per_token_ms", watched.step)):
            flat[name] = _spread(series)
        flat |= {"vision_ms": _spread(watched.vision), "selection_ms": _spread(watched.selection)}
        return flat


def _spread(series: Sequence[float]) -> dict[str, float]:
    return {key.removesuffix("_ms"): value for key, value in asdict(Spread.of(series)).items()}
