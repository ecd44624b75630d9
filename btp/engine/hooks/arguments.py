"""Reads and replaces the arguments of a forward by their names, however they were passed."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn


class Binding:
    """The parameter names of one module's `forward`; hosts pass the same argument by position or by name."""

    def __init__(self, module: nn.Module) -> None:
        written: Any = getattr(module, "_orig_mod", module)  # torch.compile hides the signature
        self._names = list(inspect.signature(written.forward).parameters)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def read(self, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """All arguments by name."""
        return dict(zip(self._names, args, strict=False)) | dict(kwargs)

    def replace(self, args: tuple, kwargs: Mapping[str, Any], changes: Mapping[str, Any]) -> tuple[tuple, dict]:
        """The arguments with some of them exchanged, each passed the way it came."""
        positional, named = list(args), dict(kwargs)
        for name, value in changes.items():
            at = self._names.index(name) if name in self._names else len(positional)
            if at < len(positional):
                positional[at] = value
            else:
                named[name] = value
        return tuple(positional), named

    @property
    def first(self) -> str:
        """Name of the first parameter, the hidden states of a layer."""
        return self._names[0]
