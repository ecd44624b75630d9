"""FlashAttention-2, which takes no mask: keys that are padding are left out, and rows are told apart by their order.

What it is given of a mask is [B, n], the keys that count. Rows are aligned with the last keys and see those in front of
them, so that rows of a decode step see all. Where heads hold other tokens, each is a row of the batch by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

FLASH = "flash_attention_2"


def keys_of(mask: Tensor | None) -> Tensor | None:
    """[B, n] the keys that count in a decode step, of its mask [B, 1, 1, n]."""
    return None if mask is None else mask[:, 0, 0]


def attend_flash(
    original: Callable, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **more: Any
) -> Any:
    """What the host's function makes of queries, keys and values.

    Args:
        original: the host's function, which looks up its kernels by the name in the module's config.
        module: the attention block.
        query: [B, Hq, R, d].
        key, value: [B, Hkv, n, d].
        mask: [B, n] or None, as the host has it, or the bool mask [B, 1 or Hq, 1, n] of a decode step.
        more: its other arguments.
    """
    with _named(module.config):
        if mask is None or mask.dim() == 2:
            return original(module, query, key, value, mask, **more)
        if mask.shape[1] == 1:
            return original(module, query, key, value, keys_of(mask), **more)
        B, heads, n, d = key.shape
        groups, rows = query.shape[1] // heads, query.shape[2]
        mine = query.reshape(B * heads, groups, rows, d)
        keys, values = (x.reshape(B * heads, 1, n, x.shape[-1]) for x in (key, value))
        counted = mask[:, ::groups, 0].reshape(B * heads, n)
        out, _ = original(module, mine, keys, values, counted, **more)  # [B * heads, rows, groups, d]
        return out.view(B, heads, rows, groups, -1).transpose(1, 2).reshape(B, rows, heads * groups, -1), None


@contextmanager
def _named(config: Any) -> Iterator[None]:
    """Let the config say the kernels' own name, which another one stands in for while a function is laid around."""
    stands, config._attn_implementation = config._attn_implementation, FLASH
    try:
        yield
    finally:
        config._attn_implementation = stands
