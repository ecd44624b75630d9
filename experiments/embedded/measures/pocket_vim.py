"""What the pocket Vim can do, and how far pruning can pay and hurt: controls alone, never a method."""

from collections.abc import Iterator
from pathlib import Path

from btp.pruners.lattice import Lattice
from btp.tasks.pocketboxes.classify import CONTRAST, PocketDigits
from experiments.embedded.measures.controls import (
    SHARES,
    Arm,
    Scores,
    check,
    cut,
    falls,
    hurts,
    knee_lies_deep,
    randoms,
    withdrawals,
)
from experiments.embedded.measures.looking import TOP1, measure_looking

SITE = "vision.layer.0"


def arms(layers: int) -> Iterator[Arm]:
    """All controls."""
    yield Arm("unpruned")
    yield Arm("blank picture", picture="blank")
    yield from randoms(SITE)
    for share in SHARES:
        yield Arm(f"smaller picture {share:.1%}", cut(SITE, share), Lattice(), "shrunk", share)
    yield from withdrawals("vision", layers)


def acceptance(scores: Scores, layers: int) -> list[dict]:
    """What the model must be, and what it is."""
    return [
        check("unpruned top1", scores["unpruned"][TOP1], 93),
        falls(scores, TOP1),
        hurts(scores, list(CONTRAST)),
        *knee_lies_deep(scores, TOP1, layers),
    ]


def measure(checkpoint: Path, split: str, samples: int) -> dict:
    """See `measure_looking`; samples of both abilities in turn."""
    return measure_looking("pocket_vim", checkpoint, PocketDigits(split, 0, samples), arms, acceptance)
