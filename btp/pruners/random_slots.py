"""Control: keeps random slots of the K/V cache, the same ones alone and in a batch."""

from __future__ import annotations

import hashlib
from math import inf

import torch
from torch import Tensor

from btp.core.cache_pruner import ScoreSlots
from btp.core.check_settings import check_whole
from btp.core.schedule import Stage
from btp.core.signals import Signals
from btp.core.slots import Slots
from btp.ops.integer_hash import mixed


class RandomSlots(ScoreSlots):
    """A slot's score is a hash of the seed, the layer, the head, the prompt's length and its position.

    It never changes, so that in decode too what stays is a random choice of all that came.

    Args:
        seed: Seed of the run.
    """

    def __init__(self, *, seed: int) -> None:
        check_whole("pruner.method.seed", seed, "an integer", least=-inf)
        self.seed = seed

    def score(self, slots: Slots, signals: Signals, stage: Stage) -> Tensor:
        """[B, Hkv, n] random numbers, 24 bits each."""
        key = int.from_bytes(hashlib.blake2b(f"{self.seed} {slots.layer}".encode(), digest_size=4).digest())
        row = mixed(slots.prompt ^ key)[:, None, None]
        head = mixed(torch.arange(slots.position.shape[1], device=row.device) + 1)[:, None]
        return (mixed(mixed(slots.position ^ row ^ head)) >> 8).float()
