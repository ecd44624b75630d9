"""One cost report per arm of a model that answers in one forward: operations, time and memory beside the unpruned."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from btp.core.trace import Call, Trace
from btp.measure.clock import Clock, Paired, Side, Spread, alternate, synchroniser
from btp.measure.flops import measured
from btp.measure.hardware import peak_memory_mib
from btp.measure.timed_pruner import TimedPruner
from btp.measure.vision.tower import TowerCost

Attached = Callable[[], AbstractContextManager[Trace]]


@dataclass(frozen=True)
class Forward:
    """A model with one batch of inputs, ready to be measured.

    Attributes:
        model: Model that runs.
        run: one forward of the batch, without gradients.
        cost: Cost of its tower, for operations by formula.
        device: Device that it runs on.
    """

    model: nn.Module
    run: Callable[[], object]
    cost: TowerCost
    device: torch.device


def measure_forward(
    subject: Forward,
    attached: Attached,
    *,
    pruner: TimedPruner | None,
    repeats: int,
    warmup: int,
    now: Clock = time.perf_counter,
) -> dict[str, Any]:
    """Measure one arm against the plain model, in turns, in this process.

    Args:
        subject: model and inputs.
        attached: attaches the engine with the arm's pruner and schedule; called once per run, off the clock.
        pruner: the wrapper that `attached` hands to the engine; None for an arm without a method.
        repeats, warmup: timed and untimed rounds.
        now: reads the clock, in seconds.

    Returns:
        {candidate, baseline}: tokens_avg (patches, averaged over the layers), flops_model (by formula, selection
        included; a multiply-add as two), flops_model_measured (counted, which sees no scan), gmacs (half of
        flops_model, in thousand millions), forward_ms and per_second (samples), selection_ms (candidate),
        forward_ratio, selection_share, peak_memory_mib (None on a CPU), batch. Counts are of one sample.
    """
    with frozen(subject.model):
        with attached() as trace, nullcontext() if pruner is None else pruner.counting():
            counted = measured(subject.run)
        plain_counted = measured(subject.run)
    call = trace.last
    seconds, selecting = _time(subject, attached, pruner, repeats, warmup, now)
    paired = Paired.of(seconds["baseline"], seconds["candidate"])
    memory = _memory(subject, attached)
    selection = 0 if pruner is None else pruner.flops
    candidate = _side(subject, call, selection, counted, paired.candidate, memory[1])
    chosen = Spread.of(selecting) if selecting else None
    share = chosen.median_ms / paired.candidate.median_ms if chosen else 0.0
    candidate |= {"selection_ms": None if chosen is None else _spread(chosen), "selection_share": share}
    candidate |= {"forward_ratio": asdict(paired.candidate_over_baseline)}
    whole = Call(call.total, call.text, visual=[call.total] * len(call.visual))
    return {
        "candidate": candidate,
        "baseline": _side(subject, whole, 0, plain_counted, paired.baseline, memory[0]),
    }


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Weights that want no gradient: torch's counter stumbles over modules that take a weight as their input."""
    wanting = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in wanting:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in wanting:
            weight.requires_grad_(True)


def _side(
    subject: Forward, call: Call, selection: int, counted: int, spread: Spread, memory: float | None
) -> dict[str, Any]:
    rows = len(call.total)
    flops = (subject.cost.flops(call) + selection) / rows
    return {
        "tokens_avg": sum(call.tokens_avg) / rows,
        "flops_model": flops,
        "flops_model_measured": counted / rows,
        "gmacs": flops / 2e9,
        "forward_ms": _spread(spread),
        "per_second": rows * 1e3 / spread.median_ms,
        "peak_memory_mib": memory,
        "batch": rows,
    }


def _time(
    subject: Forward, attached: Attached, pruner: TimedPruner | None, repeats: int, warmup: int, now: Clock
) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds of each side's forwards, and of the candidate's selections in forwards of their own."""
    sync = synchroniser(subject.device)
    chosen: list[float] = []

    @contextmanager
    def watched():
        with ExitStack() as stack:
            stack.enter_context(attached())
            if pruner is not None:
                pruner.seconds.clear()
                stack.enter_context(pruner.timing(sync, now))
            yield
        if pruner is not None:
            chosen.append(sum(pruner.seconds))

    sides = {"baseline": Side(subject.run), "candidate": Side(subject.run, attached)}
    if pruner is not None:
        sides["selection"] = Side(subject.run, watched)
    seconds = alternate(sides, repeats=repeats, warmup=warmup, sync=sync, now=now)
    return seconds, chosen[warmup:]


def _spread(spread: Spread) -> dict[str, float]:
    return {key.removesuffix("_ms"): value for key, value in asdict(spread).items()}


def _memory(subject: Forward, attached: Attached) -> tuple[float | None, float | None]:
    baseline = peak_memory_mib(subject.run, subject.device)
    if baseline is None:
        return None, None
    with attached():
        return baseline, peak_memory_mib(subject.run, subject.device)
