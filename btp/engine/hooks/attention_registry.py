"""Attention functions of ours in front of a tower's own, through transformers' attention registry.

The implementation is renamed for the time being to one of ours, which looks at queries and keys and hands on to the
original, so that fused attention stays on. The same name is registered for masks, since an unknown name would
silently lose the mask. It contains "flash" where the original does, and only there: the host goes by that.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from btp.engine.hooks.flash import FLASH, attend_flash

_NUMBERS = itertools.count()
_UNFOLLOWED = ("softcap", "position_bias", "s_aux")
Look = Callable[[int, Tensor, Tensor, Tensor, Tensor | None, float], None]
Bias = Callable[[Tensor], Tensor | None]


@dataclass(frozen=True, eq=False)
class Attending:
    """One layer's attention, as its module calls it.

    Attributes:
        at: number of the layer.
        query: [B, Hq, R, d] behind RoPE.
        key, value: [B, Hkv, n, d], with what the cache holds already; grouped heads are not repeated.
        mask: Mask that the logits get: None (causal), bool or additive [B, 1, R, n]; None too where the layer's
            function takes the keys that count alone (FlashAttention), as those are known.
        scaling: the layer's own factor.
        attend: `attend(mask)` is the original function with a mask; returns what the module expects.
        odd: what the module adds to its logits beyond a mask; empty where nothing.
        own: the mask as the layer got it, to be handed on.
    """

    at: int
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scaling: float
    attend: Callable[[Tensor | None], Any]
    odd: tuple[str, ...] = ()
    own: Tensor | None = None


def watch_attention(
    root: nn.Module, layers: Mapping[int, nn.Module], look: Look, undo: ExitStack, bias: Bias | None = None
) -> None:
    """Call `look(layer, query, key, value, mask, scaling)` whenever one of `layers` attends.

    Args:
        root: Module whose configs choose the implementation: the decoder, or the vision tower.
        layers: number -> module.
        undo: receives what takes all of it back.
        bias: query -> what is added to the logits of these layers, [B, 1, 1, S] of the query's dtype; masks of
            their own must be additive then.
    """

    def stand(now: Attending) -> Any:
        if now.odd:
            raise ValueError(
                f"Layer {now.at} computes attention with {', '.join(now.odd)}, which attention signals do not follow "
                "yet. Use a method without attention signals on this model."
            )
        added = None if bias is None else bias(now.query)
        if added is None:
            look(now.at, now.query, now.key, now.value, now.mask, now.scaling)
            return now.attend(now.own)
        mask = added if now.mask is None else now.mask + added
        look(now.at, now.query, now.key, now.value, mask, now.scaling)
        return now.attend(mask)

    stand_around_attention(root, layers, stand, undo)


def stand_around_attention(
    root: nn.Module, layers: Mapping[int, nn.Module], stand: Callable[[Attending], Any], undo: ExitStack
) -> None:
    """Let `stand` make the attention of `layers`, by `Attending.attend` with a mask of its choice.

    May be laid around one that stands there already; the later one is called first, and its mask is what the earlier
    one sees.

    Args:
        root: Module whose configs choose the implementation: the decoder, or the vision tower.
        layers: number -> module.
        undo: receives what takes all of it back.
    """
    inside = {id(module): at for at, layer in layers.items() for module in layer.modules()}
    standing_for(root, _function(implementation(root), inside, stand), undo)


def standing_for(root: nn.Module, function: Callable, undo: ExitStack) -> None:
    """Let `function` compute all attention inside of `root`, with the masks that it gets now.

    Args:
        root: As in `watch_attention`.
        function: Function like transformers' attention functions.
        undo: receives what takes all of it back.
    """
    configs = _configs(root)
    base = implementation(root)
    name = f"btp_{base}_{next(_NUMBERS)}"
    AttentionInterface.register(name, function)
    undo.callback(AttentionInterface._global_mapping.pop, name)
    AttentionMaskInterface.register(name, AttentionMaskInterface._global_mapping[base])
    undo.callback(AttentionMaskInterface._global_mapping.pop, name)
    for config in configs.values():
        undo.callback(setattr, config, "_attn_implementation", config._attn_implementation)
        config._attn_implementation = name


def implementation(root: nn.Module) -> str:
    """The name under which `root` looks up its attention."""
    return next(config._attn_implementation for config in _configs(root).values())


def _configs(root: nn.Module) -> dict[int, Any]:
    return {id(m.config): m.config for m in root.modules() if hasattr(m, "config")}


def _function(base: str, inside: Mapping[int, int], stand: Callable[[Attending], Any]) -> Callable:
    known = AttentionInterface._global_mapping.get(base)

    def attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
        original = known if known is not None else own_eager(module)
        at = inside.get(id(module))
        if at is None and base != FLASH:
            return original(module, query, key, value, attention_mask, scaling=scaling, **kwargs)

        def attend(mask):
            if base == FLASH:
                return attend_flash(original, module, query, key, value, mask, scaling=scaling, **kwargs)
            return original(module, query, key, value, mask, scaling=scaling, **kwargs)

        if at is None:
            return attend(attention_mask)
        factor = query.shape[-1] ** -0.5 if scaling is None else scaling
        odd = tuple(k for k in _UNFOLLOWED if kwargs.get(k) is not None)
        seen = None if attention_mask is not None and attention_mask.dim() == 2 else attention_mask
        return stand(Attending(at, query, key, value, seen, factor, attend, odd, attention_mask))

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
