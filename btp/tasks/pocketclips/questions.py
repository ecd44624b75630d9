"""Questions about a clip, by ability. Every question has one right answer that its events decide."""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from btp.tasks.pocketclips.scene import MOVES, STILL, Event
from btp.tasks.pocketvqa import questions as pictures

QA = tuple[str, str, tuple[Event, ...]]  # question, answer, the events one has to look at
LONGER = 2  # frames that the longest event has more than any other


def ask(ability: str, events: list[Event], rng: np.random.Generator) -> QA | None:
    """Ask one question of `ability`, or return None where this clip allows none."""
    options = ABILITIES[ability](events)
    return options[rng.integers(len(options))] if options else None


def _attribute(events: list[Event]) -> list[QA]:
    names, colors = Counter(e.name for e in events), Counter(e.color for e in events)
    by_color = [(f"what color is the {e.name} ?", e.color, (e,)) for e in events if names[e.name] == 1]
    return by_color + [(f"what shape is {e.color} ?", e.name, (e,)) for e in events if colors[e.color] == 1]


def _order(events: list[Event]) -> list[QA]:
    pairs = list(pairwise(events))
    found = [(f"what comes after the {a.phrase} ?", b.phrase, (a, b)) for a, b in pairs]
    found += [(f"what comes before the {b.phrase} ?", a.phrase, (a, b)) for a, b in pairs]
    return [*found, ("what comes first ?", events[0].phrase, (events[0],)), _last(events)]


def _last(events: list[Event]) -> QA:
    return "what comes last ?", events[-1].phrase, (events[-1],)


def _count(events: list[Event]) -> list[QA]:
    return [("how many events are there ?", str(len(events)), tuple(events))]


def _motion(events: list[Event]) -> list[QA]:
    return [(f"where does the {e.phrase} go ?", e.move, (e,)) for e in events if e.end - e.first > 1]


def _digit(events: list[Event]) -> list[QA]:
    return _signs(events, "digit")


def _number(events: list[Event]) -> list[QA]:
    return _signs(events, "number")


def _signs(events: list[Event], kind: str) -> list[QA]:
    found = []
    for e in events:
        if e.sign is not None and (kind == "digit") == (len(e.sign.name) == 1):
            color = f"which digit is {e.sign.color} ?" if kind == "digit" else f"what number is {e.sign.color} ?"
            found += [(color, e.sign.name, (e,)), (f"what {kind} is beside the {e.phrase} ?", e.sign.name, (e,))]
    return found


def _longest(events: list[Event]) -> list[QA]:
    best, second = sorted(events, key=lambda e: e.first - e.end)[:2]
    if (best.end - best.first) - (second.end - second.first) < LONGER:
        return []
    return [("what is shown longest ?", best.phrase, tuple(events))]


def _describe(events: list[Event]) -> list[QA]:
    return [("describe the events in order .", " , ".join(e.phrase for e in events), tuple(events))]


ABILITIES: dict[str, Callable[[list[Event]], list[QA]]] = {
    "attribute": _attribute,
    "order": _order,
    "count": _count,
    "motion": _motion,
    "digit": _digit,
    "number": _number,
    "longest": _longest,
    "describe": _describe,
}


def words() -> Iterator[str]:
    """Every word that a question or an answer of this task can hold, behind those of pocketvqa."""
    more = f"comes after before first last events does go shown longest beside {' '.join(MOVES)} {STILL}"
    yield from dict.fromkeys((*pictures.words(), *more.split()))
