"""Elementwise integer hash: repeatable pseudo-random numbers."""

from __future__ import annotations

from torch import Tensor


def mixed(x: Tensor) -> Tensor:
    """A hash of int64 to 31 bits: two multiplications, whose overflow is part of it, with a shift between them."""
    x = x * 0x2545F4914F6CDD1D
    x = x.bitwise_xor_(x >> 29).mul_(0x1B873593CC9E2D51)  # in place: small tensors cost what their operators cost
    return x.bitwise_right_shift_(33).bitwise_and_(0x7FFFFFFF)
