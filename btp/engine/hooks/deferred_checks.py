"""Checks on tensor content that cost no host sync while the model runs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Error = Callable[[list[int]], ValueError]
Read = Callable[[list[float]], list[int]]


def whole(numbers: list[float]) -> list[int]:
    """Refuse, later, what is no whole number."""
    return [int(number) for number in numbers]


class Doubts:
    """Collects device flags and reads them later, in one sync; on the CPU they are read at once.

    Args:
        wait: read those on the CPU later too, as if they lay on a device.
    """

    def __init__(self, wait: bool = False) -> None:
        self._wait = wait
        self._open: list[tuple[Tensor, Error, Read]] = []

    def expect(self, ok: Tensor, message: str) -> None:
        """Note that `ok`, a bool scalar, must be true.

        Raises:
            ValueError: it lies on the CPU and is false.
        """
        self.refuse(~ok.reshape(1), lambda found: ValueError(message))

    def refuse(self, found: Tensor, error: Error, read: Read = whole) -> None:
        """Note that `found`, [B] numbers or bool, must be 0 throughout, or what `read` makes of them.

        Args:
            error: what to raise for the whole numbers found.
            read: makes these of the numbers on the host.

        Raises:
            ValueError: it lies on the CPU and is not.
        """
        self._open.append((found, error, read))
        if found.device.type == "cpu" and not self._wait:
            self.settle()

    def settle(self) -> None:
        """Read what is open; called where the device has caught up anyway.

        Raises:
            ValueError: something expected was false; the message says what.
        """
        noted, self._open = self._open, []
        if not noted:
            return
        device = noted[0][0].device
        exact = torch.float64 if any(found.dtype == torch.float64 for found, *_ in noted) else torch.float32
        numbers = torch.cat([found.to(device, exact) for found, *_ in noted]).tolist()
        for found, error, read in noted:
            mine, numbers = read(numbers[: len(found)]), numbers[len(found) :]
            if any(mine):
                raise error(mine)
