"""The host's K/V cache: which kinds can be followed, and what lies in it."""

from __future__ import annotations

from typing import Any

from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

_GROWING = (DynamicLayer, DynamicSlidingWindowLayer)


def check_cache(cache: Any) -> None:
    """Refuse caches whose layers cannot hold different lengths.

    Raises:
        ValueError: anything but a plain DynamicCache, or one whose windows take tokens back.
    """
    if cache is None:
        return
    odd = next(
        (type(layer).__name__ for layer in getattr(cache, "layers", ()) if type(layer) not in _GROWING),
        "",
    )
    rolling = any(getattr(layer, "record_past", False) for layer in getattr(cache, "layers", ()))
    if type(cache) is not DynamicCache or odd or rolling or getattr(cache, "offloading", False):
        found = f"{type(cache).__name__}" + (f" with {odd}" if odd else "")
        raise ValueError(
            f"Pruning needs a DynamicCache, whose layers may differ in length; this run uses {found}. "
            "Leave cache_implementation and cache_config unset (no static, compiled, quantised or offloaded "
            "cache, and no assisted decoding)."
        )


def is_filled(cache: Any) -> bool:
    """Whether a cache holds tokens already; an empty one, or none, means prefill."""
    return cache is not None and bool(cache.get_seq_length() > 0)


def slots(cache: Any) -> list[int]:
    """K/V slots of each layer."""
    return [layer.keys.shape[-2] for layer in _filled(cache)]


def size_bytes(cache: Any) -> list[int]:
    """Bytes of each layer's keys and values, all rows together."""
    return [layer.keys.nbytes + layer.values.nbytes for layer in _filled(cache)]


def _filled(cache: Any) -> list[Any]:
    layers = getattr(cache, "layers", None) or []
    return [layer for layer in layers if getattr(layer, "keys", None) is not None]
