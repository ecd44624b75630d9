"""One cost report per arm: tokens, operations, cache, latency and memory, beside the unpruned model."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from btp.core.signals import Signal
from btp.core.trace import Call, Trace
from btp.measure.architecture import Architecture
from btp.measure.clock import Clock, Paired, Side, Spread, Sync, alternate, synchroniser
from btp.measure.decode import decode
from btp.measure.flops import attention_signal, measured, prefill, preview, visual_pdrop
from btp.measure.hardware import hardware, peak_memory_mib
from btp.measure.kv import kv_bytes
from btp.measure.phases import PhaseTimer
from btp.measure.segments import Segments
from btp.measure.timed_pruner import TimedPruner
from btp.ops.slots import rows_that_count

Generate = Callable[[int], object]
Attached = Callable[[], AbstractContextManager[Trace]]


@dataclass(frozen=True)
class Subject:
    """A model with one batch of inputs, ready to be measured.

    Attributes:
        generate: runs the model on the batch for exactly that many new tokens per row (min_new_tokens and
            max_new_tokens alike), with a cache and without gradients.
        architecture: Sizes of the model.
        segments: what its vision tower runs over for this batch (`btp.measure.segments`).
        vision: the vision tower; None without one.
        feature: the vision layer that the projector reads; -1 where it is not known.
        decoder: the language model, called once per new token.
        device: Device that it runs on.
        dtype: Data type of weights and cache.
    """

    generate: Generate
    architecture: Architecture
    segments: Segments
    vision: nn.Module | None
    decoder: nn.Module
    device: torch.device
    dtype: torch.dtype
    feature: int = -1


def measure(
    subject: Subject,
    attached: Attached,
    *,
    pruner: TimedPruner | None,
    new_tokens: int,
    repeats: int,
    warmup: int,
    now: Clock = time.perf_counter,
) -> dict[str, Any]:
    """Measure one arm against the plain model, in turns, in this process.

    Counts are of the whole batch, `rows` says of how many samples; tokens_avg and tokens_per_layer are means
    over the rows. Times: vision_ms, selection_ms and decoder_ms come from runs of their own, since waiting
    for the device inside a run slows it; decoder_ms holds the selections of decoder stages and the signals
    computed for them. prefill_ms is the time to the first token, all included. per_token_ms is
    (time of new_tokens - time of one token) / (new_tokens - 1).

    Args:
        subject: model and inputs.
        attached: attaches the engine with the arm's pruner and schedule, as `attach` does; called once per
            run, off the clock. An empty schedule measures the cost of the hooks.
        pruner: the wrapper that `attached` hands to the engine; None for an arm without a method.
        new_tokens: length of the runs that per_token_ms comes from, at least 2.
        repeats, warmup: timed and untimed rounds.
        now: reads the clock, in seconds.

    Returns:
        JSON-able: method, rows, tokens_avg, tokens_per_layer, flops_*, kv_*, latency, peak_memory_mib (None
        on a CPU), hardware, and under `unpruned` the counts of the plain model. flops_prefill holds
        flops_selection (counted) and flops_signals (attention rows computed once more, previews); of an architecture
        that is `counted` it is the measured count. flops_decode is of one decode step, the mean over the steps of a run
        of new_tokens, selection and signals included.

    Raises:
        ValueError: new_tokens is below 2.
        RuntimeError: generate did not make as many tokens as asked.
    """
    if new_tokens < 2:
        raise ValueError(f"new_tokens is {new_tokens}. The time per token needs at least 2.")
    plain = measured(lambda: subject.generate(1))
    counts, call = _count(subject, attached, pruner, plain)
    counts |= _steps(subject, attached, pruner, new_tokens, counts["flops_prefill_measured"])
    plain_steps = (measured(lambda: subject.generate(new_tokens)) - plain) / (new_tokens - 1)
    counts["unpruned"] |= _per_step(subject, _unpruned(call, new_tokens - 1), (), 0, plain_steps)
    _check_length(subject, nullcontext, new_tokens)
    _check_length(subject, attached, new_tokens)
    latency = _latency(subject, attached, pruner, new_tokens, repeats, warmup, now)
    return {
        **counts,
        "latency": latency,
        "peak_memory_mib": _memory(subject, attached, new_tokens),
        "hardware": hardware(subject.device, subject.dtype),
    }


def count(subject: Subject, attached: Attached, pruner: TimedPruner | None, plain: int) -> dict[str, Any]:
    """What `measure` returns of tokens, operations and cache, from one prefill with the pruner.

    Args:
        plain: operations counted in a prefill of the unpruned model.
    """
    return _count(subject, attached, pruner, plain)[0]


def _count(subject: Subject, attached: Attached, pruner: TimedPruner | None, plain: int) -> tuple[dict[str, Any], Call]:
    trace, flops_measured = _counted(subject, attached, pruner)
    call = trace.last
    selection, signals = _extra(subject, call, pruner)
    return {
        "method": trace.method,
        "rows": len(call.total),
        **_counts(subject, call, selection + signals, flops_measured),
        "flops_prefill_measured": flops_measured,
        "flops_selection": selection,
        "flops_signals": signals,
        "unpruned": _counts(subject, _unpruned(call), 0, plain) | {"flops_prefill_measured": plain},
    }, call


def _counted(
    subject: Subject, attached: Attached, pruner: TimedPruner | None, new_tokens: int = 1
) -> tuple[Trace, int]:
    with attached() as trace, nullcontext() if pruner is None else pruner.counting():
        flops = measured(lambda: subject.generate(new_tokens))
    return trace, flops


def _steps(
    subject: Subject, attached: Attached, pruner: TimedPruner | None, new_tokens: int, prefill_measured: int
) -> dict[str, float | None]:
    """Operations of a decode step, from a run whose prefill was counted alone before."""
    before = (0, {}) if pruner is None else (pruner.flops, pruner.asked)
    trace, flops = _counted(subject, attached, pruner, new_tokens)
    looked, selection = set(), 0.0
    if pruner is not None:
        again = {
            site.previous_layer for site, n in pruner.asked.items() if site.kind == "layer" and n > before[1][site]
        }
        looked = {signal.site.layer for signal in pruner.attention if signal.site in again}
        selection = (pruner.flops - before[0]) / (new_tokens - 1)
    return _per_step(subject, trace.last, looked, selection, (flops - prefill_measured) / (new_tokens - 1))


def _per_step(
    subject: Subject, call: Call, looked: Collection[int], selection: float, counted: float
) -> dict[str, float | None]:
    computed = counted if subject.architecture.counted else decode(subject.architecture, call, looked, selection)
    return {"flops_decode": computed, "flops_decode_measured": counted}


def _extra(subject: Subject, call: Call, pruner: TimedPruner | None) -> tuple[int, int]:
    """Operations of selecting, and of the attention rows and previews that were computed for it."""
    if pruner is None:
        return 0, 0
    return pruner.flops, sum(_signal(subject, call, s, rows) for s, rows in pruner.attention.items())


def _signal(subject: Subject, call: Call, signal: Signal, rows: int) -> int:
    if signal.site.tower == "vision":
        if subject.architecture.vision is None:
            return 0  # its sizes are not known; the measured count has it
        stack, lengths = subject.architecture.vision.stack, subject.segments[0]
        layer = signal.site.layer if signal.site.kind == "layer" else subject.feature
        each = call.vision[layer][0] if call.vision else lengths[0]
        return attention_signal(stack, [each] * len(lengths), each if signal.rows == "mean" else rows)
    decoder = subject.architecture.decoder
    if signal.kind == "preview":
        before = next(stage.before for stage in call.stages if stage.site == signal.site)
        return preview(decoder, [t + n for t, n in zip(call.text, before, strict=True)], rows)
    tokens = call.tokens[signal.site.layer]
    if signal.rows == "decayed":
        assert signal.decay is not None
        return sum(attention_signal(decoder, [n], rows_that_count(signal.decay, n)) for n in tokens)
    if signal.rows == "mean":
        return sum(attention_signal(decoder, [n], n) for n in tokens)
    return attention_signal(decoder, tokens, rows)


def _counts(subject: Subject, call: Call, selection: int, counted: int) -> dict[str, Any]:
    decoder, rows = subject.architecture.decoder, len(call.total)
    kv = kv_bytes(decoder, call, subject.dtype)
    each = zip(*call.visual, strict=True)
    return {
        "tokens_avg": sum(call.tokens_avg) / rows,
        "tokens_per_layer": [sum(layer) / rows for layer in call.visual],
        "flops_visual_pdrop": sum(visual_pdrop(row, decoder.hidden, decoder.ffn) for row in each),
        "flops_prefill": counted
        if subject.architecture.counted
        else prefill(
            subject.architecture,
            call.tokens,
            subject.segments,
            passed=call.vision,
            projected=call.projected,
            selection=selection,
        ),
        "kv_bytes_per_layer": {
            "computed": list(kv.computed),
            "measured": None if kv.measured is None else list(kv.measured),
        },
        "kv_mib": kv.held_mib,
    }


def _unpruned(call: Call, steps: int = 0) -> Call:
    """The call as it would have been without a pruner, with so many decode steps behind it."""
    layers = len(call.visual)
    everything = tuple(v + t for v, t in zip(call.total, call.text, strict=True))
    tokens = [everything] * layers
    return Call(call.total, call.text, visual=[call.total] * layers, tokens=tokens, decode_steps=steps)


def _check_length(subject: Subject, around: Callable[[], AbstractContextManager[object]], new_tokens: int) -> None:
    with around(), PhaseTimer({"decoder": subject.decoder}, lambda: None) as timer:
        subject.generate(new_tokens)
    calls = len(timer.seconds["decoder"])
    if calls != new_tokens:
        raise RuntimeError(
            f"generate({new_tokens}) called the decoder {calls} times, so the time per token would be wrong. "
            "Pass min_new_tokens and max_new_tokens alike, use_cache=True, and no assistant model."
        )


class _Phases:
    """Seconds of each phase, one entry per run, warm-up included."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {"vision": [], "selection": [], "decoder": []}

    @contextmanager
    def watch(
        self,
        modules: Mapping[str, nn.Module],
        around: Callable[[], AbstractContextManager[object]],
        pruner: TimedPruner | None,
        sync: Sync,
        now: Clock,
    ) -> Iterator[None]:
        """Time the phases of one run made inside."""
        with ExitStack() as stack:
            stack.enter_context(around())
            timer = stack.enter_context(PhaseTimer(modules, sync, now))
            if pruner is not None:
                pruner.seconds.clear()
                stack.enter_context(pruner.timing(sync, now))
            yield
        for name, calls in timer.seconds.items():
            self.seconds[name].append(sum(calls))
        if pruner is not None:
            self.seconds["selection"].append(sum(pruner.seconds))


def _latency(
    subject: Subject,
    attached: Attached,
    pruner: TimedPruner | None,
    new_tokens: int,
    repeats: int,
    warmup: int,
    now: Clock,
) -> dict[str, Any]:
    sync = synchroniser(subject.device)
    modules = {"decoder": subject.decoder} | ({} if subject.vision is None else {"vision": subject.vision})
    phases = {"baseline": _Phases(), "candidate": _Phases()}
    kinds = {"baseline": (nullcontext, None), "candidate": (attached, pruner)}

    def first() -> object:
        return subject.generate(1)

    sides: dict[str, Side] = {}
    for arm, (around, watched) in kinds.items():

        def watch(
            arm: str = arm, around: Any = around, watched: TimedPruner | None = watched
        ) -> AbstractContextManager[None]:
            return phases[arm].watch(modules, around, watched, sync, now)

        sides[f"{arm} first"] = Side(first, around)
        sides[f"{arm} all"] = Side(lambda: subject.generate(new_tokens), around)
        sides[f"{arm} phases"] = Side(first, watch)
    seconds = alternate(sides, repeats=repeats, warmup=warmup, sync=sync, now=now)

    def per_token(arm: str) -> list[float]:
        both = zip(seconds[f"{arm} all"], seconds[f"{arm} first"], strict=True)
        return [(every - first) / (new_tokens - 1) for every, first in both]

    def phase(name: str) -> dict[str, Any]:
        kept = {arm: watched.seconds[name][warmup:] for arm, watched in phases.items()}
        return {arm: asdict(Spread.of(series)) if series else None for arm, series in kept.items()}

    prefill_ms = Paired.of(seconds["baseline first"], seconds["candidate first"])
    per_token_ms = Paired.of(per_token("baseline"), per_token("candidate"))
    return {
        "vision_ms": phase("vision"),
        "selection_ms": phase("selection"),
        "decoder_ms": phase("decoder"),
        "prefill_ms": asdict(prefill_ms),
        "per_token_ms": asdict(per_token_ms),
        "repeats": repeats,
        "warmup": warmup,
        "new_tokens": new_tokens,
    }


def _memory(subject: Subject, attached: Attached, new_tokens: int) -> dict[str, float | None] | None:
    def run() -> object:
        return subject.generate(new_tokens)

    baseline = peak_memory_mib(run, subject.device)
    if baseline is None:
        return None
    with attached():
        return {"baseline": baseline, "candidate": peak_memory_mib(run, subject.device)}
