"""KeyDiff: keeps the slots whose keys are least like all others."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

from btp.core.cache_pruner import ScoreSlots
from btp.core.schedule import Stage
from btp.core.signals import Signal, Signals
from btp.core.slots import Slots

EPSILON = 1e-12


class KeyDiff(ScoreSlots):
    """A slot's score is minus the cosine of its key to the mean of all keys of unit length, for each head by itself.

    Source: Park et al. 2025, arXiv:2504.15364, whose algorithm takes the prompt block by block; here it is taken whole.
    """

    def needs(self, stage: Stage) -> tuple[Signal, ...]:
        """Keys."""
        return (Signal("keys", stage.site),)

    def score(self, slots: Slots, signals: Signals, stage: Stage) -> Tensor:
        """[B, Hkv, n]."""
        keys = signals[self.needs(stage)[0]].float()
        size = keys.norm(dim=-1).clamp(min=EPSILON)
        weight = size.reciprocal().masked_fill(~slots.valid, 0.0)
        anchor = normalize(weight[:, :, None] @ keys, dim=-1, eps=EPSILON)  # [B, Hkv, 1, d] where the mean points
        return -(keys @ anchor.transpose(-1, -2))[..., 0] / size
