"""Puts a function of ours in front of a tower's attention, through transformers' attention registry.

The implementation is renamed for the time being to one of ours, which looks at queries and keys and hands on to the
original, so that fused attention stays on. The same name is registered for masks, since an unknown name would
silently lose the mask, and it never contains "flash", which the host treats specially.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

_NUMBERS = itertools.count()
Look = Callable[[int, Tensor, Tensor, Tensor, Tensor | None, float], None]
Bias = Callable[[Tensor], Tensor | None]


def watch_attention(
    root: nn.Module, layers: Mapping[int, nn.Module], look: Look, undo: ExitStack, bias: Bias | None = None
) -> None:
    """Call `look(layer, query, key, value, mask, scaling)` whenever one of `layers` attends.

    Args:
        root: whose configs choose the implementation: the decoder, or the vision tower.
        layers: number -> module.
        undo: receives what takes all of it back.
        bias: query -> what is added to the logits of these layers, [B, 1, 1, S] of the query's dtype; masks that they
            have must be additive then.
    """
    inside = {id(module): at for at, layer in layers.items() for module in layer.modules()}
    configs: dict[int, Any] = {id(m.config): m.config for m in root.modules() if hasattr(m, "config")}
    base = _implementation(configs.values())
    name = f"btp_{base}_{next(_NUMBERS)}"
    AttentionInterface.register(name, _function(base, inside, look, bias))
    undo.callback(AttentionInterface._global_mapping.pop, name)
    AttentionMaskInterface.register(name, AttentionMaskInterface._global_mapping[base])
    undo.callback(AttentionMaskInterface._global_mapping.pop, name)
    for config in configs.values():
        undo.callback(setattr, config, "_attn_implementation", config._attn_implementation)
        config._attn_implementation = name


def _implementation(configs: Iterable[Any]) -> str:
    return next(config._attn_implementation for config in configs)


def _function(base: str, inside: Mapping[int, int], look: Look, bias: Bias | None) -> Callable:
    known = AttentionInterface._global_mapping.get(base)

    def attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
        at = inside.get(id(module))
        if at is not None:
            odd = [k for k in ("softcap", "position_bias", "s_aux") if kwargs.get(k) is not None]
            if odd:
                raise ValueError(
                    f"{type(module).__name__} computes attention with {', '.join(odd)}, which attention signals do "
                    "not follow yet. Use a method without attention signals on this model."
                )
            factor = query.shape[-1] ** -0.5 if scaling is None else scaling
            added = None if bias is None else bias(query)
            if added is not None:
                attention_mask = added if attention_mask is None else attention_mask + added
            look(at, query, key, value, attention_mask, factor)
        original = known if known is not None else own_eager(module)
        return original(module, query, key, value, attention_mask, scaling=scaling, **kwargs)

    return attention


def own_eager(module: nn.Module) -> Callable:
    """The eager attention function of a module's own modeling file.

    Raises:
        RuntimeError: the file has none.
    """
    found: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if found is None:
        raise RuntimeError(
            f"{type(module).__name__} has no eager_attention_forward beside it, so its attention cannot be seen. "
            "Load the model with attn_implementation=sdpa."
        )
    return found
