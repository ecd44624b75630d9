"""Signals of a vision tower whose output is pooled: a square block of patches becomes a visual token.

Such a tower is called with pictures [P, T, C] as one that can be cut, but behind it a pixel shuffle or average pooling
joins the patches of each block, so that none of them stays or leaves by itself. What is seen of patches is put together
for the visual token that they become: attention received is added up over the block, so that it still sums to one over
a picture, queries and keys are averaged. Hidden states at vision.output are what the projector hands out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from btp.core.host import Host
from btp.core.keep import on_device
from btp.core.signals import Signal
from btp.engine.decide import Decision
from btp.engine.decoder.prefill import Run
from btp.engine.hooks.attention_registry import watch_attention
from btp.engine.hooks.attention_rows import tower_rows


class PooledPictures(threading.local):
    """Hooks with the interface of a `VisionStream` without stages; thread-local.

    Args:
        host: the model, whose tokens pass the projector picture by picture, pooled.
        signals: all declared signals; those of the vision tower are seen here.
    """

    def __init__(self, host: Host, signals: Iterable[Signal]) -> None:
        self._host = host
        self._signals = [s for s in dict.fromkeys(signals) if s.site.tower == "vision"]
        self._parts: dict[Signal, Tensor] = {}  # over the patches, until the projector tells their number
        self._seen: dict[Signal, Tensor] | None = None  # [P, ...] as `Signal` says, over the visual tokens
        self._each = 0  # visual tokens of a picture
        self._which: tuple[int, ...] | None = None  # which of the encoded entries the prompt was given
        self._lengths: tuple[int, ...] = ()  # visual tokens of each of these

    @property
    def needed(self) -> bool:
        """Whether any signal is in the vision tower."""
        return bool(self._signals)

    def open(self, undo: ExitStack) -> None:
        """Register every hook."""
        vision, projector = self._host.vision, self._host.projector
        assert vision is not None  # held by check.check_merged
        assert projector is not None
        undo.callback(vision.register_forward_pre_hook(self._before_tower).remove)
        undo.callback(projector.register_forward_hook(self._behind_projector).remove)
        undo.callback(self._parts.clear)
        layers = self._host.towers["vision"].layers
        attending = {self._layer(s): layers[self._layer(s)] for s in self._signals if s.kind != "hidden"}
        if attending:
            watch_attention(vision, attending, self._look, undo)

    def encoding(self, kind: str, arguments: Mapping[str, Any]) -> None:
        """Pictures are about to be encoded; frames of a video are pictures here."""

    def begin(self, inputs: Mapping[str, Any]) -> None:
        """A prompt enters the model, perhaps with features that were encoded before."""
        given = (inputs.get("mm_encoder_outputs") or {}).get("image")
        encoded = inputs.get("encoded", {}).get("image")
        if given is None or encoded is None:
            self._seen = None  # the tower runs now, or its features are another's
        self._which = None if given is None or encoded is None else encoded.which
        pooled = () if given is None or self._which is None else given.pooler_output
        self._lengths = tuple(entry.shape[-2] for entry in pooled)

    def seen(self, signal: Signal) -> Tensor:
        """A signal as a stage of the language model gets it: per picture of the prompt, over all its tokens."""
        assert self._seen is not None  # held by withdrawn
        found, mine = self._seen[signal], self._pictures()
        return found if mine is None else found[on_device(mine, found.device)]

    def withdrawn(self, run: Run) -> tuple[Decision, bool] | None:
        """Nothing; tell the prompt which picture each of its tokens is of.

        Raises:
            RuntimeError: the pictures did not pass the tower under these hooks, or are not those of the prompt.
        """
        if not max(run.ledger.total):
            return None
        pictures, mine = 0, self._pictures()
        if self._seen:
            pictures = len(next(iter(self._seen.values()))) if mine is None else len(mine)
        if sum(run.ledger.total) != pictures * self._each or not pictures:
            raise RuntimeError(
                f"The prompt has {sum(run.ledger.total)} visual tokens, but {pictures} pictures passed the vision "
                "tower while the engine was attached, so a signal there shows nothing of them. Pass pixel_values in "
                "place of ready features."
            )
        visual = run.layout.visual
        number = (visual.flatten().cumsum(0) - 1).view_as(visual).masked_fill(~visual, -1)
        run.layout, run.per_picture = replace(run.layout, source=number), self._each
        return None

    def _pictures(self) -> list[int] | None:
        """Which of the pictures seen are the prompt's, in its order; None for all of them in theirs.

        What is encoded for a row may be one entry of several pictures.
        """
        if self._which is None or not self._each:
            return None
        sizes = {entry: length // self._each for entry, length in zip(self._which, self._lengths, strict=True)}
        first = {entry: sum(sizes.get(before, 1) for before in range(entry)) for entry in sizes}
        return [first[entry] + i for entry in self._which for i in range(sizes[entry])]

    def _layer(self, signal: Signal) -> int:
        return signal.site.layer if signal.site.kind == "layer" else len(self._host.towers["vision"].layers) - 1

    def _before_tower(self, module, args) -> None:
        self._parts.clear()
        self._seen = None

    def _look(self, at: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> None:
        front = self._host.towers["vision"].fixed_count
        for signal in self._signals:
            if signal.kind == "hidden" or self._layer(signal) != at:
                continue
            if signal.kind == "attention":
                with torch.no_grad():
                    x = tower_rows(query, key, mask, scaling, str(signal.rows), "probs", front)
            else:
                x = query * scaling if signal.kind == "queries" else key
            self._parts[signal] = x

    def _behind_projector(self, module, args, output: Tensor) -> None:
        front, self._each = self._host.towers["vision"].fixed_count, output.shape[1]
        self._seen = {}
        for signal in self._signals:
            if signal.kind == "hidden":
                self._seen[signal] = output
            elif signal.kind == "attention":
                self._seen[signal] = pooled(self._parts[signal], self._each, 3, Tensor.sum)
            else:
                x = self._parts[signal]
                lead, patches = x[:, :, :front], x[:, :, front:]
                patches = pooled(patches, self._each, 2, Tensor.mean)
                self._seen[signal] = torch.cat([lead, patches], dim=2) if signal.rows == "all" else patches
        self._parts.clear()


def pooled(x: Tensor, tokens: int, axis: int, together: Callable[..., Tensor]) -> Tensor:
    """Sum or mean over square blocks of a square grid.

    Args:
        x: patches row by row along `axis`.
        tokens: blocks; patches are a square times as many.
        axis: Axis of the patches.
        together: Reduction of a tensor over an axis, as Tensor.sum or Tensor.mean.

    Returns:
        As x, with the blocks row by row along `axis`.

    Raises:
        RuntimeError: the patches are no such blocks.
    """
    side, blocks = isqrt(x.shape[axis]), isqrt(tokens)
    if side**2 != x.shape[axis] or blocks**2 != tokens or side % max(blocks, 1):
        raise RuntimeError(
            f"{x.shape[axis]} patches of a picture became {tokens} visual tokens, which are no square blocks of a "
            "square. This family needs an adapter in btp.models."
        )
    x = x.unflatten(axis, (blocks, side // blocks, blocks, side // blocks))
    return together(together(x, axis + 3), axis + 1).flatten(axis, axis + 1)
