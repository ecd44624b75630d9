"""Wraps the forward of the root module, however it is called: by the module's call, by name, by a wrapper.

Hooks on the root would be passed over by callers of `model.forward`, and would hear nothing of an interrupt.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from torch import nn

from btp.engine.hooks.arguments import Binding
from btp.engine.hooks.forward_lock import Turn

Follow = Callable[[Mapping[str, Any], Callable[[], Any]], Any]


def stand_around(root: nn.Module, turn: Turn, follow: Follow, undo: ExitStack) -> None:
    """Let `follow(inputs by name, proceed)` make every forward of `root`, one after the other.

    Args:
        root: the module that takes input_ids.
        turn: held during each forward.
        follow: calls `proceed()` for the module's own forward, and returns what it returned.
        undo: receives what takes all of it back.
    """
    own, binding = root.forward, Binding(root)
    before = vars(root).get("forward")  # compiled, or replaced by accelerate, on this object alone
    left = []

    @functools.wraps(own)  # generate() asks for the signature
    def forward(*args, **kwargs):
        if left:  # somebody kept a reference beyond the attach
            return own(*args, **kwargs)
        with turn.taken():
            return follow(binding.read(args, kwargs), functools.partial(own, *args, **kwargs))

    def leave() -> None:
        left.append(True)
        if vars(root).get("forward") is forward:
            del root.forward
            if before is not None:
                root.forward = before

    root.forward = forward
    undo.callback(leave)
