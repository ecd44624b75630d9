"""Whole numbers that look random and repeat: a hash, elementwise."""

from __future__ import annotations

from torch import Tensor

_MASK = 0xFFFFFFFF


def mixed(x: Tensor) -> Tensor:
    """The last step of MurmurHash3 on 32 bits held in int64; overflow leaves the low 32 bits right."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _MASK
    return x ^ (x >> 16)
