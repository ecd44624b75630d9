"""Questions about a layout, by ability. Every question has one right answer that the layout decides."""

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from btp.tasks.pocketvqa.layout import COLORS, SHAPES, Thing

QA = tuple[str, str, tuple[Thing, ...]]  # question, answer, the objects one has to look at
ROWS = ("top", "middle", "bottom")
COLS = ("left", "center", "right")
STEPS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}


def ask(ability: str, things: list[Thing], rng: np.random.Generator) -> QA | None:
    """Ask one question of `ability`, or return None where this layout allows none.

    Answers are balanced where a guess could profit: presence is yes or no by a coin, a count is drawn among
    the counts 0 to 4 before the thing that is counted; a layout without such a thing allows no question.
    """
    return ABILITIES[ability](things, rng)


def _pick(rng: np.random.Generator, options: list[QA]) -> QA | None:
    return options[rng.integers(len(options))] if options else None


def _unique(things: list[Thing], key: Callable[[Thing], object]) -> list[Thing]:
    seen = Counter(key(t) for t in things)
    return [t for t in things if seen[key(t)] == 1]


def _presence(things: list[Thing], rng: np.random.Generator) -> QA | None:
    simple = [t for t in things if t.kind != "number"]
    if not simple:
        return None
    there = {t.phrase for t in simple}
    if rng.random() < 0.5:
        shown = {p: tuple(t for t in simple if t.phrase == p) for p in there}
        return _pick(rng, [(f"is there a {p} ?", "yes", shown[p]) for p in sorted(there)])
    colors, names = sorted({t.color for t in things}), sorted({t.name for t in simple})
    hard = [p for c in colors for n in names if (p := f"{c} {n}") not in there]
    easy = [p for c in COLORS for n in (*SHAPES, *"0123456789") if (p := f"{c} {n}") not in there]
    absent = hard if hard and rng.random() < 0.8 else easy
    return _pick(rng, [(f"is there a {p} ?", "no", ()) for p in absent])


def _attribute(things: list[Thing], rng: np.random.Generator) -> QA | None:
    named = [t for t in _unique(things, lambda t: t.name) if t.kind != "number"]
    colored = [t for t in _unique(things, lambda t: t.color) if t.kind == "shape"]
    by_color = [(f"what color is the {t.name} ?", t.color, (t,)) for t in named]
    by_shape = [(f"what shape is {t.color} ?", t.name, (t,)) for t in colored]
    first, second = (by_color, by_shape) if rng.random() < 0.5 else (by_shape, by_color)
    return _pick(rng, first or second)


def _counting(things: list[Thing], rng: np.random.Generator) -> QA | None:
    colors, shapes = Counter(t.color for t in things), Counter(t.name for t in things)
    target = int(rng.integers(0, 5))
    options = [c for c in COLORS if colors[c] == target] + [s for s in SHAPES if shapes[s] == target]
    return _pick(rng, [(f"how many {o} things are there ?", str(target), tuple(things)) for o in options])


def _position(things: list[Thing], rng: np.random.Generator) -> QA | None:
    small = [t for t in _unique(things, lambda t: t.phrase) if t.rows == t.cols == 1]
    return _pick(rng, [(f"where is the {t.phrase} ?", f"{ROWS[t.row]} {COLS[t.col]}", (t,)) for t in small])


def _relation(things: list[Thing], rng: np.random.Generator) -> QA | None:
    small = {(t.row, t.col): t for t in things if t.rows == t.cols == 1}
    options = []
    for t in _unique(things, lambda t: t.phrase):
        if t.rows == t.cols == 1:
            for step, (dy, dx) in STEPS.items():
                other = small.get((t.row + dy, t.col + dx))
                if other:
                    options.append((f"what is {step} the {t.phrase} ?", other.phrase, (t, other)))
    return _pick(rng, options)


def _same_as(things: list[Thing], rng: np.random.Generator) -> QA | None:
    options = []
    for t in _unique(things, lambda t: t.name):
        for wanted in ("digit", "shape"):
            match = [o for o in things if o is not t and o.color == t.color and o.kind == wanted]
            if t.kind != "number" and len(match) == 1:
                options.append((f"which {wanted} has the color of the {t.name} ?", match[0].name, (t, *match)))
    return _pick(rng, options)


def _digit(things: list[Thing], rng: np.random.Generator) -> QA | None:
    digits = [t for t in things if t.kind == "digit"]
    single = _unique(digits, lambda t: t.color)
    return _pick(rng, [(f"which digit is {t.color} ?", t.name, (t,)) for t in single])


def _number(things: list[Thing], rng: np.random.Generator) -> QA | None:
    numbers = [t for t in things if t.kind == "number"]
    options = [(f"what number is {t.color} ?", t.name, (t,)) for t in _unique(numbers, lambda t: t.color)]
    shapes = [t for t in _unique(things, lambda t: t.name) if t.kind == "shape" and t.rows == 1]
    for n in _unique(numbers, lambda t: t.row):
        beside = [s for s in shapes if s.row == n.row]
        options += [(f"what number is in the row of the {s.name} ?", n.name, (s, n)) for s in beside]
    return _pick(rng, options)


def _describe(things: list[Thing], rng: np.random.Generator) -> QA | None:
    return "describe the scene in order .", " , ".join(t.phrase for t in things), tuple(things)


ABILITIES: dict[str, Callable[[list[Thing], np.random.Generator], QA | None]] = {
    "presence": _presence,
    "attribute": _attribute,
    "counting": _counting,
    "position": _position,
    "relation": _relation,
    "same_as": _same_as,
    "digit": _digit,
    "number": _number,
    "describe": _describe,
}


def words() -> Iterator[str]:
    """Every word that a question or an answer of this task can hold."""
    fixed = "is there a what color the shape how many things are where in which has of number row digit ?"
    fixed += " describe scene order . , yes no above below " + " ".join((*ROWS, *COLS, *COLORS, *SHAPES))
    yield from dict.fromkeys((*fixed.split(), *"0123456789"))
