"""KeyDiff: keeps the slots whose keys are least like all others."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from btp.core.cache_pruner import ScoreSlots
from btp.core.schedule import Stage
from btp.core.signals import Signal, Signals
from btp.core.slots import Slots


class KeyDiff(ScoreSlots):
    """A slot's score is minus the cosine of its key to the mean of all keys of unit length, for each head by itself.

    Source: Park et al. 2025, arXiv:2504.15364, whose algorithm takes the prompt block by block; here it is taken whole.
    """

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """Keys."""
        return (Signal("keys", stage.site),)

    def score(self, slots: Slots, signals: Signals, stage: Stage) -> Tensor:
        """[B, Hkv, n]."""
        unit = normalize(signals[self.needs(stage)[0]].float(), dim=-1)
        counts = slots.valid.sum(2, keepdim=True)[..., None].clamp(min=1)
        anchor = unit.masked_fill(~slots.valid[..., None], 0.0).sum(2, keepdim=True) / counts
        return -torch.cosine_similarity(unit, anchor, dim=-1)
