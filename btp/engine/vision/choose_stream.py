"""Choice of hooks for a vision tower: packed and merged, pooled behind it (videos alone, or all), or token by token."""

from __future__ import annotations

from collections.abc import Iterable

from btp.core.host import Host
from btp.core.signals import Signal
from btp.engine.checks.plan import PlannedStage
from btp.engine.decide import Decider
from btp.engine.vision.passed_frames import PassedFrames
from btp.engine.vision.pooled_frames import PooledFrames
from btp.engine.vision.pooled_pictures import PooledPictures
from btp.engine.vision.pooled_probe import MergedTower
from btp.engine.vision.stream import VisionStream


def vision_of(
    host: Host, decider: Decider, plan: tuple[PlannedStage, ...], signals: Iterable[Signal], frames: PassedFrames
) -> VisionStream | MergedTower | PooledPictures:
    """The hooks for the tower of `host`: packed and merged, pooled behind it (videos alone, or all), or token by token.

    Args:
        host: the model.
        decider: asks the pruner at stages in the tower.
        plan: all stages.
        signals: all declared signals.
        frames: keeps what is seen of the frames of videos.
    """
    if hasattr(host, "tower_order"):
        return MergedTower(host, signals)
    tower = host.towers.get("vision")
    if tower is not None and tower.pooled:
        return PooledPictures(host, signals)
    if hasattr(host, "pool_frames"):
        return PooledFrames(host, decider, plan, signals, frames)
    return VisionStream(host, decider, plan, signals)
