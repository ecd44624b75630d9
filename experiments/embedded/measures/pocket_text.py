"""What the pocket text model can do, and how far pruning can pay and hurt: controls alone, never a method.

Tokens of the prompt leave in front of the model, or slots leave its K/V cache behind the prompt and in every step.
"""

from collections.abc import Iterator
from pathlib import Path

from btp.core.schedule import Schedule, Stage
from btp.pruners.random_slots import RandomSlots
from btp.pruners.streaming import Streaming
from btp.pruners.window import Window
from btp.tasks.pocketdocs.questions import ABILITIES
from btp.tasks.pocketdocs.task import PocketDocs
from experiments.embedded.measures.asking import MACRO, measure_asking
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

EMPTY = "no context"
TARGETS = {
    "needle": 98,
    "lookup": 95,
    "document": 95,
    "hop": 85,
    "latest": 90,
    "count": 75,
    "few_shot": 90,
    "recite": 95,
}
QUARTER = SHARES[1]


def arms(layers: int) -> Iterator[Arm]:
    """All controls."""
    yield Arm("unpruned")
    yield Arm(EMPTY, picture="none")
    yield from randoms("llm.input")
    for share in SHARES:
        yield Arm(f"window {share:.1%}", cut("llm.input", share), Window())
    for share in SHARES:
        yield Arm(f"random slots {share:.1%}", slots(share), RandomSlots(seed=0))
    for share in SHARES:
        yield Arm(f"window of slots {share:.1%}", slots(share, first=4), Streaming())
    yield from withdrawals("llm", layers)


def slots(share: float, first: int = 0) -> Schedule:
    """A share of the prompt's slots stays in every layer's cache, `first` of them its first ones."""
    return Schedule((Stage("llm.cache.*", share, phase="both", settings={"every": 1, "first": first}),))


def acceptance(scores: Scores, layers: int) -> list[dict]:
    """What the model must be, and what it is."""
    whole = scores["unpruned"]
    checks = [check(f"unpruned {ability}", whole[ability], least) for ability, least in TARGETS.items()]
    window, random = scores[f"window of slots {QUARTER:.1%}"], scores[f"random slots {QUARTER:.1%}"]
    return [
        *checks,
        check(f"window of {QUARTER:.0%} of the slots, needle", window["needle"], at_most=40),
        check(f"window of {QUARTER:.0%} of the slots, recent", window["recent"], 90),
        check(f"random {QUARTER:.0%} of the slots, lookup", random["lookup"], at_most=45),
        falls(scores, MACRO),
        hurts(scores, list(ABILITIES)),
        *knee_lies_deep(scores, MACRO, layers, floor=EMPTY),
    ]


def measure(checkpoint: Path, split: str, samples: int) -> dict:
    """See `measure_asking`; questions of all abilities in turn, each in all lengths by turns."""
    return measure_asking("pocket_text", checkpoint, PocketDocs(split, 0, samples), arms, acceptance)
