"""Sees declared signals while the host runs, and nothing else; fused attention stays on.

Attention rows, keys and values pass through transformers' attention registry: the decoder's implementation
is renamed for the time of the probe to one of ours, which looks at queries and keys and hands on to the
original. The same name is registered for masks, since an unknown name would silently lose the mask, and it
never contains "flash", which the host treats specially.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from btp.core.ledger import View
from btp.core.signals import Signal
from btp.core.tower import Host
from btp.engine.binding import Binding
from btp.engine.rows import attention_rows, last_row
from btp.engine.run import Run, gather_rows

_NUMBERS = itertools.count()
_IN_ATTENTION = ("attention", "keys", "values")


@dataclass(frozen=True)
class Sight:
    """A signal that was seen.

    Attributes:
        signal: which.
        value: as `Signal` says, over the visual tokens of `view`; padding is 0.
        view: tokens that were alive there.
        rows_valid: [B, R] for rows text, else None.
    """

    signal: Signal
    value: Tensor
    view: View
    rows_valid: Tensor | None = None


class Probe(AbstractContextManager):
    """Looks at declared signals during prefill and hands each to `sink` as soon as it is there.

    Args:
        host: the model.
        signals: what to look at; those of `check_signal` are known to be possible.
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
        self._at: dict[int, list[Signal]] = {}
        for signal in dict.fromkeys(signals):
            self._at.setdefault(max(signal.site.layer, 0), []).append(signal)
        self._stack = ExitStack()

    def __enter__(self) -> Probe:
        layers = self._host.towers["llm"].layers
        inside: dict[int, int] = {}
        with ExitStack() as undo:
            for at, signals in self._at.items():
                kinds = {signal.kind for signal in signals}
                if kinds & {"hidden", "update"}:
                    hook = layers[at].register_forward_pre_hook(self._before(at), with_kwargs=True)
                    undo.callback(hook.remove)
                if "update" in kinds:
                    hook = layers[at].register_forward_hook(self._behind(at), with_kwargs=True)
                    undo.callback(hook.remove)
                if kinds & set(_IN_ATTENTION):
                    inside |= {id(module): at for module in layers[at].modules()}
            if inside:
                self._rename(layers, inside, undo)
            self._stack = undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _rename(self, layers: Iterable[nn.Module], inside: dict[int, int], undo: ExitStack) -> None:
        base = attention_name(self._host)
        name = f"btp_{base}_{next(_NUMBERS)}"
        AttentionInterface.register(name, self._attention(base, inside))
        undo.callback(AttentionInterface._global_mapping.pop, name)
        AttentionMaskInterface.register(name, AttentionMaskInterface._global_mapping[base])
        undo.callback(AttentionMaskInterface._global_mapping.pop, name)
        modules = itertools.chain([self._host.decoder], *(layer.modules() for layer in layers))
        configs: dict[int, Any] = {id(m.config): m.config for m in modules if hasattr(m, "config")}
        for config in configs.values():
            undo.callback(setattr, config, "_attn_implementation", config._attn_implementation)
            config._attn_implementation = name

    def _attention(self, base: str, inside: dict[int, int]) -> Callable:
        """The attention function under our name: looks, then hands on to the original."""
        known = AttentionInterface._global_mapping.get(base)

        def attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
            run, at = self._run(), inside.get(id(module))
            if run is not None and at is not None:
                odd = [k for k in ("softcap", "position_bias", "s_aux") if kwargs.get(k) is not None]
                if odd:
                    raise ValueError(
                        f"{type(module).__name__} computes attention with {', '.join(odd)}, which attention "
                        "signals "
                        "do not follow yet. Use a method without attention signals on this model."
                    )
                factor = query.shape[-1] ** -0.5 if scaling is None else scaling
                self._look_inside(run, at, query, key, value, attention_mask, factor)
            original = known if known is not None else own_eager(module)
            return original(module, query, key, value, attention_mask, scaling=scaling, **kwargs)

        return attention

    def _look_inside(self, run: Run, at: int, query, key, value, mask, scaling: float) -> None:
        view = run.ledger.at(at)
        for signal in self._at[at]:
            if signal.kind not in _IN_ATTENTION or _nothing_alive(view):
                continue
            if signal.kind != "attention":
                x = key if signal.kind == "keys" else value
                self._emit(run, signal, lambda row, x=x: gather_rows(x, row, axis=2), view)
                continue
            row = last_row(view) if signal.rows == "last" else run.ledger.text_rows(view)
            with torch.no_grad():
                seen = attention_rows(query, key, mask, scaling, row, view, str(signal.form))
            valid = (row >= 0).to(seen.device) if signal.rows == "text" else None
            self._sink(run, Sight(signal, seen, view, valid))

    def _before(self, at: int) -> Callable:
        def look(module, args, kwargs):
            run = self._run()
            if run is None:
                return
            hidden = binding.read(args, kwargs)[binding.first]
            view = run.ledger.at(at)
            for signal in self._at[at]:
                if signal.kind == "hidden" and not _nothing_alive(view):
                    self._emit(run, signal, lambda row: gather_rows(hidden, row), view)

        binding = Binding(self._host.towers["llm"].layers[at])
        return look

    def _behind(self, at: int) -> Callable:
        def look(module, args, kwargs, output):
            run = self._run()
            if run is None:
                return
            entered = binding.read(args, kwargs)[binding.first]
            left = output[0] if isinstance(output, tuple) else output
            view = run.ledger.at(at)
            for signal in self._at[at]:
                if signal.kind == "update" and not _nothing_alive(view):
                    both = [gather_rows(x, view.visual_row) for x in (entered, left)]
                    self._sink(run, Sight(signal, torch.stack(both), view))

        binding = Binding(self._host.towers["llm"].layers[at])
        return look

    def _emit(self, run: Run, signal: Signal, take: Callable[[Tensor], Tensor], view: View) -> None:
        row = view.visual_row if signal.rows is None else run.ledger.text_rows(view)
        value = take(row)
        if signal.form == "normed":
            assert self._host.norm is not None  # held by check_signal
            value = self._host.norm(value)
        valid = (row >= 0).to(value.device) if signal.rows == "text" else None
        self._sink(run, Sight(signal, value, view, valid))


def attention_name(host: Host) -> str:
    """The decoder's attention implementation."""
    return host.decoder.config._attn_implementation  # type: ignore[union-attr, return-value]


def own_eager(module: nn.Module) -> Callable:
    """The eager attention function of a module's own modeling file.

    Raises:
        RuntimeError: the file has none.
    """
    found: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if found is None:
        raise RuntimeError(
            f"{type(module).__name__} has no eager_attention_forward beside it, so its attention cannot be "
            "seen. "
            "Load the model with attn_implementation=sdpa."
        )
    return found


def check_signal(host: Host, signal: Signal, who: str) -> None:
    """Refuse a signal that cannot be seen on this host.

    Raises:
        ValueError: names who asked, what for, and what to change.
    """
    tower = host.towers.get(signal.site.tower)
    if signal.kind == "preview" or signal.rows == "cls" or signal.site.tower != "llm":
        what = "preview signals" if signal.kind == "preview" else "signals of the vision tower"
        raise ValueError(f"{who} asks for {signal}, but {what} are not built yet. Use a signal of a decoder layer.")
    if signal.kind == "update" and signal.form != "layer":
        raise ValueError(f"{who} asks for {signal}, but updates of sub-blocks are not built yet. Use form layer.")
    assert tower is not None
    if signal.site.layer >= len(tower.layers):
        raise ValueError(
            f"{who} asks for {signal}, but the llm tower has {len(tower.layers)} layers. "
            f"Ask for a layer from 0 to {len(tower.layers) - 1}."
        )
    if signal.kind in _IN_ATTENTION and not tower.attends:
        raise ValueError(
            f"{who} asks for {signal}, but the {tower.name} tower has no attention. "
            "Use a method that asks for hidden states."
        )
    if signal.form == "normed" and host.norm is None:
        raise ValueError(f"{who} asks for {signal}, but the decoder has no final norm. Use form None.")


def _nothing_alive(view: View) -> bool:
    return max(view.visual_counts) == 0
