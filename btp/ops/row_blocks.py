"""Blocks of rows of a table that is never held whole."""

from __future__ import annotations

from collections.abc import Iterator

import torch

HELD = 64 * 2**20  # bytes of scratch memory held at once
CACHE = 4 * 2**20  # the same on a CPU, where what is read again should not leave the cache


def row_blocks(rows: int, row_bytes: int, device: torch.device) -> Iterator[slice]:
    """Slices that cover all rows in order, each as many as fit into the scratch memory of the device, at least one.

    Args:
        rows: Number of rows; without any there is no slice.
        row_bytes: Bytes that one row takes, over the batch and all heads.
    """
    size = max(1, (CACHE if device.type == "cpu" else HELD) // max(1, row_bytes))
    for first in range(0, rows, size):
        yield slice(first, min(first + size, rows))
