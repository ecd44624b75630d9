"""Checks on tensor content that cost no host sync while the model runs."""

from __future__ import annotations

import torch
from torch import Tensor


class Doubts:
    """Collects device flags and reads them later, in one sync; on the CPU they are read at once."""

    def __init__(self) -> None:
        self._open: list[tuple[Tensor, str]] = []

    def expect(self, ok: Tensor, message: str) -> None:
        """Note that `ok`, a bool scalar, must be true.

        Raises:
            ValueError: it lies on the CPU and is false.
        """
        if ok.device.type == "cpu":
            if not bool(ok):
                raise ValueError(message)
        else:
            self._open.append((ok, message))

    def settle(self) -> None:
        """Read what is open; called where the device has caught up anyway.

        Raises:
            ValueError: something expected was false; the message says what.
        """
        noted, self._open = self._open, []
        if noted:
            flags = torch.stack([ok.to(noted[0][0].device) for ok, _ in noted]).tolist()
            for fine, (_, message) in zip(flags, noted, strict=True):
                if not fine:
                    raise ValueError(message)
