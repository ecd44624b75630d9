"""Record of encoder calls: generate() encodes pictures first, and then calls the model without sizes or grids.

An encoder is a method of the model and no module, so it cannot be hooked. Each attach lays a function over the method
that remembers what it was called with, and takes it away again; the model's own method does all the work.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from btp.core.host import Encoding, Host
from btp.core.keep import on_device
from btp.engine.hooks.forward_lock import Turn

KINDS = ("image", "video")
OnEncoding = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True, eq=False)
class _Pass:
    """One call of an encoder: what it was called with, and what came out, as an object and entry by entry."""

    arguments: dict[str, Any]
    output: Any
    entries: tuple[Tensor, ...]


class Encoders(threading.local):
    """The image and video encoder of a model, and the latest call of each in this thread.

    Args:
        host: the model.
        turn: taken while an encoder runs.
        on_encoding: called as `on_encoding(kind, arguments)` before an encoder runs.
    """

    def __init__(self, host: Host, turn: Turn, on_encoding: OnEncoding | None = None) -> None:
        self._host, self._turn, self._on_encoding = host, turn, on_encoding
        self._latest: dict[str, _Pass] = {}
        self._inside = False  # of an encoder, which may call the other one

    def open(self, undo: ExitStack) -> None:
        """Start to remember; closing the stack ends it."""
        base = getattr(self._host.model, "base_model", self._host.model)
        for kind in KINDS:
            name = f"get_{kind}_features"
            if hasattr(base, name):
                undo.callback(_put_back, base, name, vars(base).get(name))
                setattr(base, name, self._over(kind, getattr(base, name)))
        undo.callback(self._latest.clear)

    def told(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs of a forward, with `encoded` for what was encoded before, as far as it was seen here.

        Sizes and grids of the pictures, one row each, come back too.
        """
        given = inputs.get("mm_encoder_outputs") or {}
        found = {kind: self._found(kind, given[kind]) for kind in KINDS if given.get(kind) is not None}
        found = {kind: encoding for kind, encoding in found.items() if encoding is not None}
        if not found:
            return dict(inputs)
        rows: dict[str, Tensor] = {}
        for kind, encoding in found.items():
            noted = hasattr(given[kind], "encoding") or kind not in self._latest
            entries = len(encoding.which) if noted else len(self._latest[kind].entries)
            rows |= _per_entry(encoding, entries)
        return rows | dict(inputs) | {"encoded": found}

    def _over(self, kind: str, method: Callable) -> Callable:
        names = list(inspect.signature(method).parameters)

        @functools.wraps(method)  # generate() asks for the signature
        def encode(*args, **kwargs):
            if self._inside:
                return method(*args, **kwargs)
            given = dict(zip(names, args, strict=False)) | kwargs
            arguments = {name: _shape_alone(value) for name, value in given.items()}
            with self._turn.shared():
                if self._on_encoding is not None:
                    self._on_encoding(kind, arguments)
                self._inside = True
                try:
                    output = method(*args, **kwargs)
                finally:
                    self._inside = False
            entries = getattr(output, "pooler_output", None)
            if entries is not None:
                self._latest[kind] = _Pass(arguments, output, tuple(entries))
            return output

        return encode

    def _found(self, kind: str, given: Any) -> Encoding | None:
        if hasattr(given, "encoding"):  # made in several calls, by who noted with what
            return given.encoding
        latest, entries = self._latest.get(kind), getattr(given, "pooler_output", None)
        if latest is None or entries is None:
            return None
        places = {_place(entry): i for i, entry in enumerate(latest.entries)}
        which = [places.get(_place(entry)) for entry in entries]
        if None in which and given is latest.output:  # beams of a tensor are stacked anew
            same = [[i for i, old in enumerate(latest.entries) if torch.equal(old, new)] for new in entries]
            which = [found[0] if found else None for found in same]
        return None if None in which else Encoding(latest.arguments, tuple(i for i in which if i is not None))


def _put_back(base: Any, name: str, own: Any) -> None:
    """Leave the attribute as it was: the class's method, unless the model had one of its own."""
    delattr(base, name)
    if own is not None:
        setattr(base, name, own)


def _place(entry: Tensor) -> tuple:
    return entry.untyped_storage().data_ptr(), entry.storage_offset(), tuple(entry.shape)


def _per_entry(encoding: Encoding, entries: int) -> dict[str, Tensor]:
    """Arguments that say something of each encoded entry, for the entries that the prompt was given."""
    tables = {k: v for k, v in encoding.arguments.items() if isinstance(v, Tensor) and v.dim() == 2}
    tables = {k: v for k, v in tables.items() if not v.is_floating_point() and len(v) == entries}
    return {k: v[on_device(encoding.which, v.device)] for k, v in tables.items()}


def _shape_alone(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) and value.is_floating_point() else value
