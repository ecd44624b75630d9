"""PyramidKV: SnapKV with more slots in early layers and fewer in late ones, at the same sum."""

from __future__ import annotations

from dataclasses import replace

from btp.core.cache_pruner import protected
from btp.core.check_settings import check_number
from btp.core.schedule import Stage
from btp.core.signals import Signals
from btp.core.slots import Slots, SlotSelection
from btp.pruners.snapkv import SnapKV


class PyramidKV(SnapKV):
    """What the stage keeps beside its window is the mean over layers; it falls linearly from the first to the last.

    Source: Cai et al. 2024, arXiv:2406.02069: the last layer keeps 1/beta of the mean, and the first as much more. The
    released code rounds the fall to whole slots a layer; here the sum over layers is kept.

    Args:
        kernel, pool: as SnapKV.
        beta: how steep, 1 or more; 1 gives all layers the same.
    """

    adaptive = True

    def __init__(self, *, kernel: int, pool: str, beta: float) -> None:
        super().__init__(kernel=kernel, pool=pool)
        check_number("pruner.method.beta", beta, "a number, 1 or more", 1)
        self.beta = beta

    def evict(self, slots: Slots, signals: Signals, stage: Stage) -> SlotSelection:
        """As SnapKV, with counts of its own."""
        counts = slots.keep_counts(stage)
        window = protected(stage, counts, self.name, slots.host_alive)[1]
        own = tuple(
            alive if count == alive else min(alive, w + falling(count - w, slots.layer, slots.layers, self.beta))
            for w, count, alive in zip(window, counts, slots.host_alive, strict=True)
        )
        chosen = super().evict(replace(slots, host_total=own), signals, replace(stage, keep=1.0, solver=None))
        return replace(chosen, counts=own)


def falling(mean: int, layer: int, layers: int, beta: float) -> int:
    """Slots of one layer that fall linearly to mean / beta in the last one; all layers together have mean * layers."""
    if layers == 1:
        return mean
    last = mean / beta
    first = 2 * mean - last

    def upto(n: int) -> float:
        """Slots of the first n layers."""
        return n * first - (first - last) / (layers - 1) * n * (n - 1) / 2

    return int(upto(layer + 1) + 0.5) - int(upto(layer) + 0.5)
