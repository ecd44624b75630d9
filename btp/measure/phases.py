"""Timing of modules inside a running model, such as vision tower and decoder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from btp.measure.clock import Clock, Sync


class PhaseTimer:
    """Times every call of the given modules while it is entered.

    Waiting for the device around each call slows the whole run a little, so time the whole in a run of its
    own. Enter it inside an attached engine: then the engine's hooks on these modules are on the clock.

    Attributes:
        seconds: durations of the calls of each module, in order.
    """

    def __init__(self, modules: Mapping[str, nn.Module], sync: Sync, now: Clock = time.perf_counter) -> None:
        """
        Args:
            modules: what to time, by name.
            sync: waits for the device.
            now: reads the clock, in seconds.
        """
        self.seconds: dict[str, list[float]] = {name: [] for name in modules}
        self._modules = dict(modules)
        self._sync = sync
        self._now = now
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> PhaseTimer:
        for name, module in self._modules.items():
            self._watch(name, module)
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _watch(self, name: str, module: nn.Module) -> None:
        starts: list[float] = []

        def before(module: nn.Module, args: Any) -> None:
            self._sync()
            starts.append(self._now())

        def after(module: nn.Module, args: Any, output: Any) -> None:
            self._sync()
            self.seconds[name].append(self._now() - starts.pop())

        self._handles.append(module.register_forward_pre_hook(before, prepend=True))
        self._handles.append(module.register_forward_hook(after))
