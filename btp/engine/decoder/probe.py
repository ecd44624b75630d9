"""Probe of declared signals of the language model in prefill; fused attention stays on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from btp.core.host import Host
from btp.core.ledger import View
from btp.core.signals import Signal
from btp.engine.decoder import kv_cache as kv
from btp.engine.decoder.prefill import Run
from btp.engine.hooks.arguments import Binding
from btp.engine.hooks.attention_registry import watch_attention
from btp.engine.hooks.attention_rows import attention_rows, gather_rows, last_row, mean_rows

IN_ATTENTION = ("attention", "queries", "keys", "values")


@dataclass(frozen=True)
class Sight:
    """Value of one signal.

    Attributes:
        signal: Signal asked for.
        value: Values as `Signal` declares them, over the visual tokens of `view`; padding is 0.
        view: tokens that were alive there.
        rows_valid: [B, R] for rows text, all and start, else None.
    """

    signal: Signal
    value: Tensor
    view: View
    rows_valid: Tensor | None = None


class _SeenError(Exception):
    """Ends a preview as soon as queries and keys were seen."""


class Probe(AbstractContextManager):
    """Looks at declared signals during prefill and hands each to `sink` as soon as it is there.

    Args:
        host: the model.
        signals: what to look at; those of `check_signal` are known to be possible, those of other towers are
            passed over.
        run: gives the run whose prefill is under way, or None.
        sink: receives each sight.
    """

    def __init__(
        self,
        host: Host,
        signals: Iterable[Signal],
        run: Callable[[], Run | None],
        sink: Callable[[Run, Sight], None],
    ) -> None:
        self._host, self._run, self._sink = host, run, sink
        self._tower = host.towers["llm"]
        self._at: dict[int, list[Signal]] = {}
        for signal in dict.fromkeys(signals):
            if signal.site.tower == "llm":
                self._at.setdefault(max(signal.site.layer, 0), []).append(signal)
        self._preview: tuple[Run, View, list[Signal]] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Probe:
        attending: dict[int, nn.Module] = {}
        with ExitStack() as undo:
            for at, signals in self._at.items():
                layer = self._tower.layers[at]
                kinds = {signal.kind for signal in signals}
                if "hidden" in kinds:
                    hook = layer.register_forward_pre_hook(self._before(at), with_kwargs=True)
                    undo.callback(hook.remove)
                if "rotary" in kinds:
                    block = self._block(layer, "attention")
                    undo.callback(block.register_forward_pre_hook(self._turned(at), with_kwargs=True).remove)
                for form in {str(s.form) for s in signals if s.kind in ("update", "change")}:
                    block = layer if form == "layer" else self._block(layer, form)
                    left = None if form == "layer" else getattr(self._tower, f"{form}_exit")
                    for module, look in self._sides(at, form, block, block if left is None else getattr(layer, left)):
                        undo.callback(module.register_forward_hook(look, with_kwargs=True).remove)
                if kinds & {*IN_ATTENTION, "preview"}:
                    attending[at] = layer
            if attending:
                assert self._host.decoder is not None  # whose layers they are
                watch_attention(self._host.decoder, attending, self._inside, undo)
            self._stack = undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def preview(self, run: Run, at: int, hidden: Tensor, view: View, companions: Mapping[str, Any]) -> None:
        """Let the coming layer compute its queries and keys, and no more, for the states in front of it.

        Args:
            hidden: [B, S', D], rows of `view`.
            companions: masks, positions and RoPE of `view`, as the layer would get them.
        """
        signals = [s for s in self._at.get(at, ()) if s.kind == "preview"]
        if not signals or _nothing_alive(view):
            return
        layer = self._tower.layers[at]
        norm = getattr(layer, str(self._tower.attention_norm))
        self._preview = (run, view, signals)
        block = self._block(layer, "attention")
        name = kv.argument(Binding(block))
        nothing = {} if name is None else {name: None}
        try:
            with torch.no_grad():
                block(hidden_states=norm(hidden), **nothing, **companions)
        except _SeenError:
            return
        finally:
            self._preview = None

    def entered(self, run: Run, hidden: Tensor) -> None:
        """What enters layer 0 behind llm.input, where both sites lie in front of one layer: [B, S', D]."""
        self._see_hidden(run, [s for s in self._at.get(0, ()) if s.site.kind == "layer"], hidden)

    def _see_hidden(self, run: Run, signals: Iterable[Signal], hidden: Tensor) -> None:
        view = run.ledger.now
        for signal in signals:
            if signal.kind == "hidden" and not _nothing_alive(view):
                self._emit(run, signal, hidden, view, axis=1)

    def _block(self, layer: nn.Module, part: str) -> nn.Module:
        return getattr(layer, str(getattr(self._tower, part)))

    def _inside(self, at: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> None:
        if self._preview is not None:
            run, view, signals = self._preview
            for signal in signals:
                self._see_rows(run, signal, query, key, mask, scaling, view)
            raise _SeenError
        run = self._run()
        if run is None:
            return
        view = run.ledger.at(at)
        for signal in self._at[at]:
            if signal.kind not in IN_ATTENTION or _nothing_alive(view):
                continue
            if signal.kind == "attention":
                self._see_rows(run, signal, query, key, mask, scaling, view)
            else:
                x = {"queries": query, "keys": key, "values": value}[signal.kind]
                self._emit(run, signal, x * scaling if signal.kind == "queries" else x, view, axis=2)

    def _see_rows(self, run, signal, query, key, mask, scaling: float, view: View) -> None:
        with torch.no_grad():
            if signal.rows == "mean":
                self._sink(run, Sight(signal, mean_rows(query, key, mask, scaling, view), view))
                return
            row = last_row(view) if signal.rows == "last" else run.ledger.text_rows(view)
            seen = attention_rows(query, key, mask, scaling, row, view, str(signal.form))
        valid = (row >= 0).to(seen.device) if signal.rows == "text" else None
        self._sink(run, Sight(signal, seen, view, valid))

    def _before(self, at: int) -> Callable:
        def look(module, args, kwargs):
            run = self._run()
            if run is None:
                return
            self._see_hidden(run, self._at[at], binding.read(args, kwargs)[binding.first])

        binding = Binding(self._tower.layers[at])
        return look

    def _turned(self, at: int) -> Callable:
        def look(module, args, kwargs):
            run = self._run()
            if run is None or self._preview is not None:
                return
            view = run.ledger.at(at)
            cos, sin = binding.read(args, kwargs)["position_embeddings"]
            both = torch.stack([cos, sin]).expand(2, len(view.place), -1, -1)
            for signal in self._at[at]:
                if signal.kind == "rotary" and not _nothing_alive(view):
                    self._emit(run, signal, both, view, axis=2)

        binding = Binding(self._block(self._tower.layers[at], "attention"))
        return look

    def _sides(self, at: int, form: str, block: nn.Module, behind: nn.Module) -> list[tuple[nn.Module, Callable]]:
        """Hooks that see what enters a block and what leaves the module behind it, or itself where that is the same."""
        held: list[Tensor] = []

        def enter(module, args, kwargs, output):
            if self._run() is not None:
                held[:] = [binding.read(args, kwargs)[binding.first]]

        def look(module, args, kwargs, output):
            run = self._run()
            if run is None:
                return
            entered = held.pop()
            left = output[0] if isinstance(output, tuple) else output
            view = run.ledger.at(at)
            for signal in self._at[at]:
                if signal.kind not in ("update", "change") or signal.form != form or _nothing_alive(view):
                    continue
                both = torch.stack([entered, left])
                value = both if signal.kind == "update" else _change(*both.unbind())
                self._emit(run, signal, value, view, axis=2)

        binding = Binding(block)
        return [(block, enter), (behind, look)]

    def _emit(self, run: Run, signal: Signal, x: Tensor, view: View, axis: int) -> None:
        """Hand on the asked rows of `x`, which holds all rows of the layer along `axis`."""
        if signal.rows == "all":
            valid: Tensor | None = view.attended.to(x.device)
        else:
            row = run.ledger.text_rows(view) if signal.rows == "text" else view.visual_row
            valid = (row >= 0).to(x.device) if signal.rows in ("text", "start") else None
            x = gather_rows(x, row, axis) if axis < 2 or signal.kind in IN_ATTENTION else _both(x, row)
        if signal.form == "normed":
            assert self._host.norm is not None  # held by check_signal
            x = self._host.norm(x)
        self._sink(run, Sight(signal, x, view, valid))


def _both(x: Tensor, row: Tensor) -> Tensor:
    """Rows of both sides of [2, B, S, ...]."""
    return torch.stack([gather_rows(side, row) for side in x])


def _change(entered: Tensor, left: Tensor) -> Tensor:
    """[2, B, S]: |left| / |entered| and their cosine, in float32 or better."""
    exact = torch.promote_types(entered.dtype, torch.float32)
    entered, left = entered.to(exact), left.to(exact)
    ratio = left.norm(dim=-1) / entered.norm(dim=-1).clamp(min=torch.finfo(exact).tiny)
    return torch.stack([ratio, torch.cosine_similarity(left, entered, dim=-1)])


def _nothing_alive(view: View) -> bool:
    return max(view.visual_counts) == 0
