"""Runs compiled code uncompiled: it does not know hooks that were registered behind its first call."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_LOCK = threading.Lock()
_ROOTS: list[nn.Module] = []  # of the engines at work, in any thread
_STANCE: list[Any] = []  # set by the first of them, taken back by the last


@contextmanager
def uncompiled(root: nn.Module) -> Iterator[None]:
    """Let whatever torch.compile made run as it was written, everywhere in this process, until this is left.

    Args:
        root: is said to be compiled, where that can be seen.
    """
    part = compiled_part(root)
    if part is not None:
        warnings.warn(
            f"{part} is compiled. Compiled code does not run hooks that came after it, so everything runs uncompiled "
            "inside attach and observe: results are the same, times are not those of the compiled model.",
            stacklevel=7,  # of who enters attach
        )
    with _LOCK:
        if not _ROOTS:
            _STANCE.append(torch.compiler.set_stance("force_eager"))
        _ROOTS.append(root)
    try:
        yield
    finally:
        with _LOCK:
            _ROOTS.remove(root)
            if not _ROOTS:
                _STANCE.pop().__exit__(None, None, None)


def compiled_part(root: nn.Module) -> str | None:
    """Which module of a model is compiled; None where none is, or where it cannot be seen."""
    for name, module in root.named_modules():
        own = vars(module).get("forward")
        if module._compiled_call_impl is not None or hasattr(own, "_torchdynamo_orig_callable"):
            return name or type(root).__name__
        if "_orig_mod" in module._modules:
            return name or type(root).__name__
    return None
