"""What the pocket video model can do, and how far pruning can pay and hurt: controls alone, never a method."""

from collections.abc import Iterator
from pathlib import Path

from btp.core.schedule import Schedule, Stage
from btp.pruners.fewer_frames import FewerFrames
from btp.pruners.pooled import Pooled
from btp.tasks.pocketclips.questions import ABILITIES
from btp.tasks.pocketclips.task import PocketClips
from experiments.embedded.measures.asking import MACRO, measure_asking
from experiments.embedded.measures.controls import (
    SHARES,
    Arm,
    Scores,
    check,
    falls,
    hurts,
    knee_lies_deep,
    randoms,
    withdrawals,
)

SITE = "llm.input"
EMPTY = "blank video"
NEEDLE = ("digit", "number")  # what one event alone shows
QUARTER = SHARES[1]


def arms(layers: int) -> Iterator[Arm]:
    """All controls."""
    yield Arm("unpruned")
    yield Arm(EMPTY, picture="blank")
    yield from randoms(SITE)
    for share in SHARES:
        yield Arm(f"fewer frames {share:.1%}", shorter(share), FewerFrames())
    yield Arm("frames pooled by 2 x 2", shorter(QUARTER), Pooled(stride=2))
    yield from withdrawals("llm", layers)


def shorter(share: float) -> Schedule:
    """A prompt with fewer tokens of the video, numbered through."""
    return Schedule((Stage(SITE, share, positions="renumber"),))


def acceptance(scores: Scores, layers: int) -> list[dict]:
    """What the model must be, and what it is."""
    whole, fewer = scores["unpruned"], scores[f"fewer frames {QUARTER:.1%}"]
    return [
        check("unpruned macro", whole[MACRO], 90),
        check("unpruned number", whole["number"], 85),
        *(check(f"{QUARTER:.0%} of the frames, {key} lost", whole[key] - fewer[key], 25) for key in NEEDLE),
        falls(scores, MACRO),
        hurts(scores, list(ABILITIES)),
        *knee_lies_deep(scores, MACRO, layers, floor=EMPTY),
    ]


def measure(checkpoint: Path, split: str, samples: int) -> dict:
    """See `measure_asking`; questions of all abilities in turn."""
    return measure_asking("pocket_video", checkpoint, PocketClips(split, 0, samples), arms, acceptance)
