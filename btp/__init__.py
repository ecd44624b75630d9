"""Token pruning in large vision-language models, for use in Python: docs/python.md.

What a name stands for is imported when it is first used, so that `import btp` costs nothing.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from btp.cli.interrupts import end_quietly
from btp.results.shipped import VERSION as __version__

if TYPE_CHECKING:
    from btp.api.attach import attach
    from btp.api.catalogue import citation, methods, models
    from btp.api.evaluate import evaluate
    from btp.api.export import export
    from btp.api.hosts import processor

_HOME = {
    "attach": "attach",
    "citation": "catalogue",
    "evaluate": "evaluate",
    "export": "export",
    "methods": "catalogue",
    "processor": "hosts",
}

__all__ = ["__version__", "attach", "citation", "evaluate", "export", "methods", "models", "processor"]

if sys.argv[:1] == ["-m"]:  # as Python has it while it looks for the module of `python -m btp.NAME`
    end_quietly()


class _Models(ModuleType):
    """The package btp.models, which lists the models that there are when it is called."""

    def __call__(self) -> dict[str, str]:
        return importlib.import_module("btp.api.catalogue").models()


importlib.import_module("btp.models").__class__ = _Models


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'btp' has no attribute {name!r}")
    return getattr(importlib.import_module(f"btp.api.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
