"""Gradient checkpointing of layers whose hooks stay outside of it.

From 5.23 on transformers checkpoints a layer's forward. Before, it checkpointed the call, hooks included: the backward
pass ran them again, when the forward that they belong to was over, and found fewer tensors than that had saved.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

HOOKS_INSIDE = "__call__" in vars(GradientCheckpointingLayer)


def checkpoint_behind_hooks(layers: Iterable[nn.Module], undo: ExitStack) -> None:
    """Let those of `layers` that are checkpointed by their call be so by their forward.

    Args:
        layers: Modules with hooks, before anything reads the signatures of their forwards.
        undo: receives what takes all of it back.
    """
    if not HOOKS_INSIDE:
        return
    for layer in layers:
        if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing:
            _move(layer, undo)


def _move(layer: Any, undo: ExitStack) -> None:
    own, before = layer.forward, dict(vars(layer))
    checkpoint = layer._gradient_checkpointing_func

    @functools.wraps(own)
    def forward(*args, **kwargs):
        if not (layer.gradient_checkpointing and layer.training):
            return own(*args, **kwargs)
        return checkpoint(functools.partial(own, **kwargs), *args)

    def whole_call(call: Callable, *args) -> Any:
        return call(*args)

    undo.callback(_restore, layer, before)
    layer.forward, layer._gradient_checkpointing_func = forward, whole_call


def _restore(layer: nn.Module, before: dict[str, Any]) -> None:
    for name in ("forward", "_gradient_checkpointing_func"):
        if name in before:
            setattr(layer, name, before[name])
        else:
            delattr(layer, name)
