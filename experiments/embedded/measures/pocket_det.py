"""What the pocket detector can do, and how far pruning can pay and hurt: controls alone, never a method."""

from collections.abc import Iterator
from pathlib import Path

from btp.pruners.oracle import Oracle
from btp.tasks.pocketboxes.scene import NAMES
from btp.tasks.pocketboxes.task import PocketBoxes
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
)
from experiments.embedded.measures.looking import SITE, measure_looking, picture_arms

HEAD = "AP50"


def arms(layers: int) -> Iterator[Arm]:
    """All controls."""
    oracles = (Arm(f"oracle boxes {share:.1%}", cut(SITE, share), Oracle(inner=chance())) for share in SHARES)
    return picture_arms(layers, between=oracles)


def acceptance(scores: Scores, layers: int) -> list[dict]:
    """What the model must be, and what it is; an ability is a name of things."""
    return [
        check("unpruned AP50", scores["unpruned"]["AP50"], 80),
        check("unpruned AP", scores["unpruned"]["AP"], 50),
        falls(scores, HEAD),
        hurts(scores, [name for name in NAMES if name in scores["unpruned"]]),
        *knee_lies_deep(scores, HEAD, layers),
    ]


def measure(checkpoint: Path, split: str, samples: int) -> dict:
    """See `measure_looking`."""
    return measure_looking("pocket_det", checkpoint, PocketBoxes(split, 0, samples), arms, acceptance)
