"""Schedules as the yaml of published figures writes them, turned into tokens per layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Tokens = list[int]


def layers(text: str) -> Tokens:
    """Tokens of each layer from "2x576 30x288": two layers of 576, then thirty of 288."""
    pairs = [part.split("x") for part in text.split()]
    return [int(tokens) for count, tokens in pairs for _ in range(int(count))]


def falling(kept: int, first: int, last: int, depth: int) -> Tokens:
    """AIM's scheduler: all of `kept` up to layer `first`, then fewer in equal steps, none from layer `last` - 1 on.

    Shares are rounded down; a layer is charged with what is left behind it, as the published figures have it.
    """
    steps = last - first
    return [kept if i < first else kept * max(0, last - 1 - i) // steps for i in range(depth)]


def visual(row: Mapping[str, Any], depth: int) -> Tokens | None:
    """Visual tokens of each layer of a row; None where its schedule was not published."""
    if "pruned" in row:
        return falling(*row["pruned"], depth)
    return layers(row["visual"]) if row["visual"] else None
