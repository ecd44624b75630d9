"""What the pocket video classifier can do, and how far pruning can pay and hurt: controls alone, never a method.

All tubes cannot leave a tower whose head reads their mean: the sweep over depth leaves a random tenth.
"""

from collections.abc import Iterator
from pathlib import Path

from btp.core.schedule import Schedule, Stage
from btp.pruners.fewer_frames import FewerFrames
from btp.tasks.pocketmoves.scene import MOVES
from btp.tasks.pocketmoves.task import PocketMoves
from experiments.embedded.measures.controls import (
    SHARES,
    Arm,
    Scores,
    chance,
    check,
    cut,
    falls,
    hurts,
    knee_lies_deep,
    randoms,
)
from experiments.embedded.measures.looking import SITE, TOP1, measure_looking

DROPPED = 24 / 64  # r of STA: tubes that leave each chunk at the first stage, half as many at each one after it
STA = "random, STA's depths, r = 24 of 64"
DEPTH = 0.1


def arms(layers: int) -> Iterator[Arm]:
    """All controls."""
    yield Arm("unpruned")
    yield Arm("blank clip", picture="blank")
    yield from randoms(SITE)
    yield Arm(STA, published(layers), chance())
    for share in (*SHARES, 1 / 8):
        yield Arm(f"fewer frames {share:.1%}", cut(SITE, share), FewerFrames())
    for layer in range(1, layers):
        yield Arm(f"random {DEPTH:.0%} at {layer}", cut(f"vision.layer.{layer}", DEPTH), chance())


def published(layers: int) -> Schedule:
    """Stages of STA (Ding et al. 2023, arXiv:2308.04549) in a tower of `layers` layers, as shares of all tubes."""
    depths = (1, layers // 3 + 1, 2 * layers // 3 + 1)
    left = (1 - DROPPED, 1 - 1.5 * DROPPED, 1 - 1.75 * DROPPED)
    return Schedule(tuple(Stage(f"vision.layer.{at}", keep) for at, keep in zip(depths, left, strict=True)))


def acceptance(scores: Scores, layers: int) -> list[dict]:
    """What the model must be, and what it is; an ability is a motion."""
    whole = scores["unpruned"][TOP1]
    return [
        check("unpruned top1", whole, 92),
        check(f"{STA}, top1 lost", whole - scores[STA][TOP1], 10),
        falls(scores, TOP1),
        hurts(scores, [move for move in MOVES if move in scores["unpruned"]]),
        *knee_lies_deep(scores, TOP1, layers, floor=f"random {DEPTH:.1%}", arm=f"random {DEPTH:.0%}"),
    ]


def measure(checkpoint: Path, split: str, samples: int) -> dict:
    """See `measure_looking`; samples of all classes in turn."""
    return measure_looking("pocket_action", checkpoint, PocketMoves(split, 0, samples), arms, acceptance)
