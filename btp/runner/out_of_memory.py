"""Recognises out-of-memory errors."""

from __future__ import annotations

import torch

SAID = ("out of memory", "not enough memory", "can't allocate memory", "cublas_status_alloc_failed")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device or the host has no room left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in SAID)
