"""Choice of hooks for a vision tower: packed and merged, pooled behind it, or token by token."""

from __future__ import annotations

from collections.abc import Iterable

from btp.core.host import Host
from btp.core.signals import Signal
from btp.engine.checks.plan import PlannedStage
from btp.engine.decide import Decider
from btp.engine.vision.pooled_pictures import PooledPictures
from btp.engine.vision.pooled_probe import MergedTower
from btp.engine.vision.stream import VisionStream


def vision_of(
    host: Host, decider: Decider, plan: tuple[PlannedStage, ...], signals: Iterable[Signal]
) -> VisionStream | MergedTower | PooledPictures:
    """The hooks for the tower of `host`: packed and merged, pooled behind it, or token by token.

    Args:
        host: the model.
        decider: asks the pruner at stages in the tower.
        plan: all stages.
        signals: all declared signals.
    """
    if hasattr(host, "tower_order"):
        return MergedTower(host, signals)
    tower = host.towers.get("vision")
    if tower is not None and tower.pooled:
        return PooledPictures(host, signals)
    return VisionStream(host, decider, plan, signals)
