"""Decoder layers that see only the places nearest to a token: which they are, and how wide they see.

A window counts places of the unpruned prompt. The host's masks say so in prefill, and a decode step hides what lies
outside by the places that the ledger knows, so that a token is seen as long as it would be if the others were hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from btp.core.host import Host
from btp.engine.hooks.flash import FLASH

_FULL, _SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class LayerKind:
    """What decoder layers have in common: they share a mask and a RoPE table.

    Attributes:
        name: Name as the decoder's config has it.
        window: places that a token sees, its own included; None where it sees all in front of it.
    """

    name: str = _FULL
    window: int | None = None


def layer_kinds(host: Host) -> tuple[LayerKind, ...]:
    """The kind of each decoder layer.

    Raises:
        ValueError: layers whose masks are neither full nor windows.
    """
    config: Any = host.decoder.config  # type: ignore[union-attr]
    window = getattr(config, "sliding_window", None)
    names = getattr(config, "layer_types", None)
    if names is None:  # a window holds for every layer then
        return (LayerKind(_FULL if window is None else _SLIDING, window),) * host.num_layers
    odd = sorted({str(name) for name in names} - {_FULL, _SLIDING})
    if odd or (_SLIDING in names and window is None):
        raise ValueError(
            f"{type(host.decoder).__name__} has layers of type {', '.join(odd) or 'sliding_attention without a window'}"
            f", but masks behind a cut are known for {_FULL} and {_SLIDING} alone. Use a model with these."
        )
    return tuple(LayerKind(name, window if name == _SLIDING else None) for name in names)


def check_flash_windows(kinds: Sequence[LayerKind], attention: str, length: int) -> None:
    """Refuse prompts beyond a window where windows count rows: behind a cut these are fewer than places.

    Args:
        kinds: Kinds of the layers.
        attention: the decoder's implementation.
        length: places of the prompt.

    Raises:
        ValueError: says what does without.
    """
    narrow = next((kind for kind in kinds if kind.window is not None and kind.window < length), None)
    if attention == FLASH and narrow is not None:
        raise ValueError(
            f"The prompt has {length} tokens and layers of type {narrow.name} see {narrow.window}, which {FLASH} "
            "counts by what is left behind a cut and not by places. Load the model with attn_implementation=sdpa "
            "(model.attention=sdpa), or shorten the prompt."
        )
