"""K/V caches of transformers: their argument's name, which classes are supported, sizes, and a lock on cut ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from btp.engine.hooks.arguments import Binding

NAMES = ("cache", "past_key_values")  # from transformers 5.24 on, and before
_GROWING = (DynamicLayer, DynamicSlidingWindowLayer)


class CutCache(DynamicCache):
    """K/V cache that lacks tokens; only the engine that cut it knows positions and masks of the next one.

    Attributes:
        followed: such a forward is under way.
    """

    followed = False

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Append keys and values, inside of the engine alone.

        Raises:
            ValueError: nobody follows, and the layer holds tokens.
        """
        if not self.followed and self.get_seq_length(layer_idx) > 0:
            raise ValueError(
                "This cache was pruned inside an attach and is continued outside of it, where nobody knows which "
                "tokens its layers lack: positions and masks would be wrong. Decode inside the same `with attach(...)` "
                "block, or run the whole prompt again with a new cache."
            )
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


class EvictedCache(CutCache):
    """A cut cache whose heads hold other tokens, or to which tokens come back.

    Rows cannot be exchanged or shortened by who does not know which tokens they hold.
    """

    def _refuse(self, what: str) -> None:
        raise ValueError(
            f"Something asked to {what} a K/V cache from which a stage at llm.cache evicts, or to which one of phase "
            "both brings tokens back, so that it cannot know the slots. Beam search (num_beams), assisted decoding and "
            "several sequences a prompt on one cache are not supported there: use greedy search or sampling."
        )

    def reorder_cache(self, beam_idx: Any) -> None:
        """Refused: beams."""
        self._refuse("reorder")

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Refused: assisted decoding."""
        self._refuse("crop")

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Refused."""
        self._refuse("repeat rows of")

    def batch_select_indices(self, indices: Any) -> None:
        """Refused."""
        self._refuse("select rows of")


def argument(binding: Binding) -> str | None:
    """What a module's forward calls its cache; None where it takes none by name."""
    return next((name for name in NAMES if name in binding), None)


def given(inputs: Mapping[str, Any]) -> Any:
    """The cache among a forward's arguments; None without one. Old names still reach a new host."""
    return next((inputs[name] for name in NAMES if inputs.get(name) is not None), None)


def returned(output: Any) -> Any:
    """The cache that a forward hands back, in whatever form its output has; None without one."""
    if isinstance(output, tuple):
        return next((part for part in output if isinstance(part, Cache)), None)
    return next((found for name in NAMES if (found := getattr(output, name, None)) is not None), None)


def lock(cache: Any, evicted: bool = False) -> None:
    """Let only forwards that the engine follows add to a cache of unequal layers.

    Args:
        evicted: heads may differ too, or tokens come back.
    """
    if type(cache) is DynamicCache:
        cache.__class__ = EvictedCache if evicted else CutCache


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
    plain = type(cache) is DynamicCache or isinstance(cache, CutCache)
    if not plain or odd or rolling or getattr(cache, "offloading", False):
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


def windows(cache: Any) -> list[int | None]:
    """How many tokens each layer holds at most; None without a limit."""
    found = (getattr(layer, "sliding_window", None) for layer in _filled(cache))
    return [None if window is None else window - 1 for window in found]


def _filled(cache: Any) -> list[Any]:
    layers = getattr(cache, "layers", None) or []
    return [layer for layer in layers if getattr(layer, "keys", None) is not None]
