"""Observing signals of an unpruned model, as calibration does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from btp.core.host import Host
from btp.core.signals import Signal, Signals
from btp.engine.attach import occupy
from btp.engine.checks.plan import check_host
from btp.engine.checks.signals import check_signal, unseen_message
from btp.engine.decoder import kv_cache as kv
from btp.engine.decoder.prefill import Run, open_run
from btp.engine.decoder.probe import Probe, Sight
from btp.engine.hooks.encoder_calls import Encoders
from btp.engine.hooks.forward_lock import Turn
from btp.engine.hooks.root_forward import stand_around


@dataclass
class Look:
    """Signals of one prefill.

    Attributes:
        total: visual tokens per row.
        valid: [B, N] bool, visual tokens that are not padding.
        coord: [B, N, 3] (frame, row, column); -1 off the grid.
        image: [B, N] which picture of the row.
        text_valid: [B, T] bool, rows of signals with rows text that are not padding.
        signals: what was kept: everything declared, or nothing where a callback took it.
    """

    total: tuple[int, ...]
    valid: Tensor
    coord: Tensor
    image: Tensor
    text_valid: Tensor
    signals: Signals = field(default_factory=Signals)


OnSignal = Callable[[Signal, Tensor, Look], None]


@contextmanager
def observe(model: Host, signals: Iterable[Signal], on_signal: OnSignal | None = None) -> Iterator[list[Look]]:
    """Watch declared signals of every prefill inside the `with` block; nothing is cut, outputs are
    bit-identical.

    Prompts without a visual token show nothing. Decode steps are not watched.

    Args:
        model: a Host, such as btp.models.lvlm.LVLM(hf_model).
        signals: what to watch, at any decoder layers.
        on_signal: called as `on_signal(signal, value, look)` as soon as a signal is there, so that it can be
            reduced on the fly and memory stays small; nothing is kept then. None keeps everything.

    Yields:
        One Look per prefill; with a callback the same, without signals.

    Raises:
        TypeError, ValueError, RuntimeError: as `attach`.
    """
    wanted = tuple(dict.fromkeys(signals))
    if not wanted:
        raise ValueError("observe was given no signal, so it would do nothing. Name at least one.")
    looks: list[Look] = []
    current: list[Run] = []
    rows_valid: dict[Signal, Tensor] = {}  # of the latest prefill

    seen: set[Signal] = set()  # in the prefill under way

    def sink(run: Run, sight: Sight) -> None:
        look = looks[-1]
        seen.add(sight.signal)
        if on_signal is not None:
            on_signal(sight.signal, sight.value, look)
            return
        kept = {**look.signals, sight.signal: sight.value}
        if sight.rows_valid is not None:
            rows_valid[sight.signal] = sight.rows_valid
        look.signals = Signals(kept, {signal: valid for signal, valid in rows_valid.items() if signal in kept})

    with occupy(model):
        check_host(model)
        for signal in wanted:
            check_signal(model, signal, "observe")
            if signal.kind == "preview" or signal.site.tower != "llm":
                raise ValueError(
                    f"observe was asked for {signal}, which only a stage can see. Ask for attention in place of a "
                    "preview, and for signals of the language model."
                )
        turn = Turn()
        encoders = Encoders(model, turn)

        def follow(inputs, proceed):
            if kv.is_filled(kv.given(inputs)):
                return proceed()
            run = open_run(model, encoders.told(inputs))
            view = run.ledger.now
            _, coord, image = run.coord(view)
            text_valid = run.ledger.text_rows(view) >= 0
            looks.append(Look(run.ledger.total, view.visual_valid, coord, image, text_valid))
            current.append(run)
            seen.clear()
            try:
                output = proceed()
            finally:
                current.clear()
            if max(run.ledger.total):
                _check_seen(wanted, seen)
            return output

        with ExitStack() as undo:
            stand_around(model.model, turn, follow, undo)
            encoders.open(undo)
            undo.enter_context(Probe(model, wanted, lambda: current[0] if turn.mine and current else None, sink))
            yield looks


def _check_seen(wanted: Iterable[Signal], seen: set[Signal]) -> None:
    for signal in wanted:
        if signal not in seen:
            raise RuntimeError(unseen_message("observe", signal))
