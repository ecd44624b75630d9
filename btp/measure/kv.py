"""K/V cache of a prefill: computed from sizes and token counts, and held against what the cache holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from btp.core.trace import Call
from btp.measure.architecture import Stack


@dataclass(frozen=True)
class KVBytes:
    """Bytes of keys and values per decoder layer, over all rows.

    Attributes:
        computed: from sizes and the tokens that entered each layer; those that its cache holds behind the prompt where
            it was evicted from.
        measured: Bytes of the cache's own tensors; None where no cache was used.
    """

    computed: tuple[int, ...]
    measured: tuple[int, ...] | None

    @property
    def agree(self) -> bool | None:
        """True where both are equal in every layer; None without a measured side."""
        return None if self.measured is None else self.computed == self.measured

    @property
    def held_mib(self) -> float:
        """All layers together, measured where it is known; 1 MiB = 2^20 bytes."""
        return sum(self.computed if self.measured is None else self.measured) / 2**20


def layer_bytes(decoder: Stack, tokens: Sequence[int], dtype: torch.dtype) -> int:
    """Bytes of one layer's keys and values.

    A cache is rectangular: every row holds as many slots as the longest one.

    Args:
        decoder: sizes of the language model.
        tokens: tokens of each row that entered the layer.
        dtype: Data type of the cache.
    """
    slots = len(tokens) * max(tokens, default=0)
    return 2 * decoder.kv_heads * decoder.head_dim * slots * dtype.itemsize


def kv_bytes(decoder: Stack, call: Call, dtype: torch.dtype) -> KVBytes:
    """Both counts of one call.

    Args:
        decoder: sizes of the language model.
        call: a finished prefill.
        dtype: Data type of the cache, as a rule that of the weights.
    """
    held = call.held if call.evicted and call.held else call.tokens
    computed = tuple(layer_bytes(decoder, tokens, dtype) for tokens in held)
    return KVBytes(computed, tuple(call.cache_bytes) or None)
