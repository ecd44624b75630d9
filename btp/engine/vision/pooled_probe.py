"""Signals of a vision tower that merges groups of packed patches (Qwen2-VL); nothing can be cut there.

Such a tower takes the patches of all pictures in one row, in an order of its own, attends to them window by window, and
ends in a merger that makes one visual token of each group of neighbours. What is seen of patches is put together for
the visual token they become: attention received is added up over the group, so that it still sums to one over a
picture, and queries and keys are averaged. Hidden states at vision.output are what the merger hands out. A video passes
the tower as one picture of several frames, which do not see each other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from btp.core.host import Host
from btp.core.keep import on_device
from btp.core.signals import Signal
from btp.engine.decide import Decision
from btp.engine.decoder.prefill import Run
from btp.engine.hooks.arguments import Binding
from btp.engine.hooks.attention_registry import watch_attention
from btp.engine.hooks.attention_rows import tower_rows

GRID = "grid_thw"


class MergedTower(threading.local):
    """Hooks with the interface of a `VisionStream` without stages; thread-local.

    Args:
        host: the model; its `tower_order` says where the tower puts each group of patches.
        signals: all declared signals; those of the vision tower are seen here.
    """

    def __init__(self, host: Host, signals: Iterable[Signal]) -> None:
        self._host = host
        self._signals = [s for s in dict.fromkeys(signals) if s.site.tower == "vision"]
        self._grid: list[list[int]] = []  # of the latest pass through the tower
        self._parts: dict[Signal, list[Tensor]] = {}  # what each call of a layer's attention showed, [H, n, ...]
        self._seen: dict[str, dict[Signal, Tensor]] = {}  # by kind, [P, ...] as `Signal` says; zeros behind a picture
        self._which: dict[str, tuple[int, ...]] = {}  # which of the pictures of a kind the prompt's are
        self._kind = "image"  # what is under way

    @property
    def needed(self) -> bool:
        """Whether any signal is in the vision tower."""
        return bool(self._signals)

    def open(self, undo: ExitStack) -> None:
        """Register every hook."""
        vision, projector = self._host.vision, self._host.projector
        assert vision is not None  # held by check.check_merged
        assert projector is not None
        hooks = [
            vision.register_forward_pre_hook(self._before_tower(Binding(vision)), with_kwargs=True),
            projector.register_forward_hook(self._behind_merger),
            vision.register_forward_hook(self._behind_tower),
        ]
        for hook in hooks:
            undo.callback(hook.remove)
        undo.callback(self._parts.clear)
        layers = self._host.towers["vision"].layers
        attending = {self._layer(s): layers[self._layer(s)] for s in self._signals if s.kind != "hidden"}
        if attending:
            watch_attention(vision, attending, self._look, undo)

    def encoding(self, kind: str, arguments: Mapping[str, Any]) -> None:
        """Pictures or videos are about to be encoded."""
        self._kind = kind

    def begin(self, inputs: Mapping[str, Any]) -> None:
        """A prompt enters the model, perhaps with features that were encoded before."""
        given, encoded = inputs.get("mm_encoder_outputs") or {}, inputs.get("encoded", {})
        # of other kinds the tower runs now, or their features are another's
        self._seen = {k: x for k, x in self._seen.items() if given.get(k) is not None and encoded.get(k) is not None}
        self._which = {kind: encoding.which for kind, encoding in encoded.items()}

    def seen(self, signal: Signal) -> Tensor:
        """A signal as a stage of the language model gets it: per picture of the prompt, over all its tokens."""
        kind, seen = next(iter(self._seen.items()))  # the only one, held by withdrawn
        which, found = self._which.get(kind), seen[signal]
        return found[on_device(which, found.device)] if which else found

    def withdrawn(self, run: Run) -> tuple[Decision, bool] | None:
        """Nothing.

        Raises:
            RuntimeError: the pictures did not pass the tower under these hooks.
            ValueError: the batch has pictures and videos, which pass the tower in turn.
        """
        if len(self._seen) > 1:
            raise ValueError(
                "The batch has pictures and videos, and a signal of the vision tower was asked for. Where the tower "
                "joins patches, its signals are followed for one kind at a time: use a method that works in the "
                "language model."
            )
        if max(run.ledger.total) and not self._seen:
            raise RuntimeError(
                "The prompt has visual tokens, but its pictures did not pass the vision tower while the engine was "
                "attached, so a signal there shows nothing. Pass pixel_values in place of ready features."
            )
        return None

    def _layer(self, signal: Signal) -> int:
        return signal.site.layer if signal.site.kind == "layer" else len(self._host.towers["vision"].layers) - 1

    def _before_tower(self, binding: Binding) -> Callable:
        def enter(module, args, kwargs):
            self._grid = binding.read(args, kwargs)[GRID].tolist()
            self._parts.clear()
            self._seen.pop(self._kind, None)

        return enter

    def _look(self, at: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> None:
        for signal in self._signals:
            if signal.kind == "hidden" or self._layer(signal) != at:
                continue
            if signal.kind in ("keys", "queries"):
                part = key[0] if signal.kind == "keys" else query[0] * scaling
            else:
                with torch.no_grad():  # the sum over the rows of this window
                    part = tower_rows(query, key, mask, scaling, "mean", "probs", 0)[0, :, 0] * query.shape[2]
            self._parts.setdefault(signal, []).append(part)

    def _behind_merger(self, module, args, output) -> None:
        for signal in self._signals:
            if signal.kind == "hidden":
                self._parts[signal] = [output[None]]

    def _behind_tower(self, module, args, output) -> None:
        order = self._host.tower_order(self._grid)  # type: ignore[attr-defined]
        patches = [t * h * w for t, h, w in self._grid]
        seen = self._seen[self._kind] = {}
        for signal, parts in self._parts.items():
            x = torch.cat(parts, dim=1)  # [H, T, ...] in the tower's order
            group = sum(patches) // len(order)
            if signal.kind != "hidden":
                x = x.unflatten(1, (-1, group))
                x = x.sum(2) if signal.kind == "attention" else x.mean(2)
            x = torch.empty_like(x).index_copy(1, order.to(x.device), x)
            each = [part.transpose(0, 1) for part in x.split([n // group for n in patches], dim=1)]  # [N, H, ...]
            if signal.kind == "attention":
                each = [part / n for part, n in zip(each, patches, strict=True)]
            x = pad_sequence(each, batch_first=True).transpose(1, 2)  # [P, H, N, ...]
            if signal.kind in ("hidden", "attention"):
                x = x[:, 0] if signal.kind == "hidden" else x[:, :, None]
            seen[signal] = x
        self._parts.clear()
