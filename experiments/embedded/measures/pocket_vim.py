"""What the pocket Vim can do, and how far pruning can pay and hurt: controls alone, never a method."""

from pathlib import Path

from btp.tasks.pocketboxes.classify import CONTRAST, PocketDigits
from experiments.embedded.measures.controls import Scores, check, falls, hurts, knee_lies_deep
from experiments.embedded.measures.looking import TOP1, measure_looking, picture_arms


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
    return measure_looking("pocket_vim", checkpoint, PocketDigits(split, 0, samples), picture_arms, acceptance)
