"""Data of an explanation: question, every stage's decision about the tokens of a picture or text, answers."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from btp.report.pages.explain_held import HeldLayer, StepLife
from btp.results.reader import UNIT, View

KEPT = "kept"  # the rule of methods that name none
HIGHEST = "highest score"  # the rule of those that rank by one score and say no more
MEANING = {  # of names whose words do not say it
    "candidates": "the line in which attention's choice stands, bright the first; who is not in it cannot be chosen",
    "rebalancing": "in the line where attention alone would have left it out",
    "farthest from scratch": "found as if nothing had been chosen before",
    "spatial seed": "a place of the grid, spread evenly",
    "distance": "to the nearest token chosen before, by cosine; diversity takes the farthest",
}


@dataclass(frozen=True)
class StageLife:
    """Decision of one stage about a sample. Tokens are named by their original visual index.

    Attributes:
        site: Site of the stage.
        plan: what the schedule says of it, as "keep 21, balance 0.6".
        alive: tokens in front of it.
        kept: those that stayed, in their order behind the stage.
        rules: name of a rule -> the kept tokens that it chose; each kept token is in exactly one.
        scores: name of a part of the score -> value by token; -inf where the part does not apply.
        merged: kept tokens that others flowed into, here or before.
        flowed: Token that went -> the kept one it flowed into.
        recorded: what the run kept here; None where its trace has no such stage.
    """

    site: str
    plan: str
    alive: tuple[int, ...]
    kept: tuple[int, ...]
    rules: Mapping[str, tuple[int, ...]]
    scores: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    merged: tuple[int, ...] = ()
    flowed: Mapping[int, int] = field(default_factory=dict)
    recorded: tuple[int, ...] | None = None

    def spans(self, part: str) -> str:
        """A part of the score, of what stays and of what goes: "kept 3.1 to 9, dropped 0.2 to 3"."""
        stays, values = set(self.kept), self.scores[part]
        return spans(*([values.get(t, math.inf) for t in each] for each in (stays, set(self.alive) - stays)))

    @property
    def same(self) -> bool:
        """Whether the run kept the same tokens."""
        return self.recorded is not None and sorted(self.recorded) == sorted(self.kept)

    def against_run(self) -> str:
        """How what was kept compares with the run's trace, in words."""
        if self.recorded is None:
            return "the run's trace has no such stage"
        if self.same:
            return "the same tokens as in the run"
        here, there = set(self.kept) - set(self.recorded), set(self.recorded) - set(self.kept)
        return f"other tokens than in the run: {_named(here)} here, {_named(there)} there"


@dataclass(frozen=True)
class Said:
    """An answer.

    Attributes:
        text: what the model says now.
        first: likeliest first tokens of the answer, with their probability.
        recorded: what it said in the run.
        score: Score in [0, 1], of what it said in the run.
    """

    text: str
    first: tuple[tuple[str, float], ...]
    recorded: str
    score: float

    @property
    def same(self) -> bool:
        """Whether it said the same in the run."""
        return self.text == self.recorded

    @property
    def mark(self) -> str:
        """right | wrong | partly."""
        return mark_of(self.score)


@dataclass(frozen=True)
class Life:
    """Explanation of one sample under one arm.

    Attributes:
        run: name of the run folder.
        command: Command that made it.
        model, task: their names.
        arm, pruner: title of the arm, and its method.
        sample, ability, question, reference: as the task has them.
        picture: the first one, as the model saw it under this arm; None where the prompt is a text alone.
        pictures: Number of pictures.
        boxes, labels: Boxes and labels of objects of the first picture.
        targets: boxes that hold what the answer needs; empty where the task does not know.
        views: grids of visual tokens that cover the first picture; tokens of none of them are counted, not drawn.
        total: visual tokens before any stage.
        unpruned, pruned: the answers without and with the stages.
        others: (title, prediction, score) of the run's further arms.
        stages: Stages in the order in which tokens meet them.
        layers: visual tokens that entered each layer of the decoder, or of the tower of a model that has none.
        kl: nats, of the first answer token, from the unpruned model.
        notes: what a reader should know.
        unit: what the model has as tokens that may leave: "visual tokens", "patches", "tubes", "prompt tokens".
        words: the prompt's pieces, of texts.
        held: layers that do not hold the whole prompt.
        steps: what stages that act in decode steps did.
        checks: of caches and steps: whether the run did the same, and that in words.
        weighs: what the probabilities beside an answer are of.
        marks: boxes of the answer without and with the stages, as marks.parquet has them; none where answers are words.
    """

    run: str
    command: str
    model: str
    task: str
    arm: str
    pruner: str
    sample: str
    ability: str
    question: str
    reference: str
    picture: Image.Image | None
    pictures: int
    boxes: tuple[tuple[float, float, float, float], ...]
    labels: tuple[str, ...]
    views: tuple[View, ...]
    total: int
    unpruned: Said
    pruned: Said
    others: tuple[tuple[str, str, float], ...]
    stages: tuple[StageLife, ...]
    layers: tuple[int, ...]
    kl: float
    notes: tuple[str, ...] = ()
    targets: tuple[tuple[float, float, float, float], ...] = ()
    unit: str = UNIT
    words: tuple[str, ...] = ()
    held: tuple[HeldLayer, ...] = ()
    steps: tuple[StepLife, ...] = ()
    checks: tuple[tuple[bool, str], ...] = ()
    weighs: str = "first token"
    marks: tuple[tuple[Mapping[str, Any], ...], tuple[Mapping[str, Any], ...]] = ((), ())

    @property
    def same(self) -> bool:
        """Whether the run did the same, as far as it tells."""
        return all(stage.same for stage in self.stages) and all(same for same, _ in self.checks)

    def boxes_said(self) -> str:
        """How the boxes of both answers compare with the labelled ones; "" where answers are no boxes."""
        if not any(self.marks):
            return ""
        whose = zip(("without pruning", f"with {self.arm}"), map(counted, self.marks), strict=True)
        return "; ".join(f"{name} {said}" for name, said in whose)

    @property
    def rules(self) -> list[str]:
        """Names of all rules that kept a token, in the order in which they choose."""
        return list(dict.fromkeys(name for stage in self.stages for name, tokens in stage.rules.items() if tokens))

    @property
    def letters(self) -> dict[str, str]:
        """A letter per rule: its first one that no rule before has taken."""
        out: dict[str, str] = {}
        for name in self.rules:
            free = [c for c in name.upper() + "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c.isalpha() and c not in out.values()]
            out[name] = free[0] if free else "?"
        return out

    @property
    def average(self) -> float:
        """Visual tokens averaged over the layers."""
        return sum(self.layers) / len(self.layers)


def spans(kept: Iterable[float], dropped: Iterable[float]) -> str:
    """Scores of what stays and of what goes, "kept 3.1 to 9, dropped 0.2 to 3"; those that are not finite left out."""
    said = []
    for name, values in (("kept", kept), ("dropped", dropped)):
        finite = [value for value in values if math.isfinite(value)]
        said += [f"{name} {min(finite):.3g} to {max(finite):.3g}"] if finite else []
    return ", ".join(said)


def counted(marks: Iterable[Mapping[str, Any]]) -> str:
    """Boxes by what they are: "2 matched, 1 wrong, 1 missed"."""
    kinds = Counter(mark["kind"] for mark in marks)
    return ", ".join(f"{kinds[kind]} {kind}" for kind in ("matched", "wrong", "missed"))


def numbered(samples: Iterable[str]) -> dict[str, str]:
    """number -> sample, of ids that end in a number in which no other ends: 3 of test-0-000003."""
    ends: dict[str, list[str]] = {}
    for sample in dict.fromkeys(samples):
        if digits := re.search(r"\d+$", sample):
            ends.setdefault(str(int(digits[0])), []).append(sample)
    return {number: named[0] for number, named in ends.items() if len(named) == 1}


def short_site(site: str) -> str:
    """A site in few characters: L7 of llm.layer.7, V3 of vision.layer.3; others as they are."""
    found = re.fullmatch(r"(llm|vision)\.layer\.(\d+)", site)
    return f"{found[1][0].upper()}{found[2]}" if found else site


def places(view: View) -> Iterator[tuple[int, int, int]]:
    """(row, column, visual token) of every cell of a view, row by row; token -1 where there is none."""
    rows, columns = view.grid
    tokens = range(rows * columns) if view.tokens is None else view.tokens
    for cell, token in enumerate(tokens):
        yield cell // columns, cell % columns, token


def shades(scores: Mapping[int, float]) -> dict[int, float]:
    """Scores as shades in [0, 1], from the least finite to the greatest; tokens without a finite one have none."""
    finite = {token: value for token, value in scores.items() if math.isfinite(value)}
    low, high = min(finite.values(), default=0.0), max(finite.values(), default=0.0)
    return {token: (value - low) / (high - low) if high > low else 1.0 for token, value in finite.items()}


def ranks(scores: Mapping[int, float]) -> dict[int, int]:
    """1 for the highest score; tokens without a finite one have none. Ties go to the lowest index."""
    finite = [token for token, value in scores.items() if math.isfinite(value)]
    order = sorted(finite, key=lambda token: (-scores[token], token))
    return {token: place for place, token in enumerate(order, start=1)}


def mark_of(score: float) -> str:
    """right | wrong | partly."""
    return "right" if score == 1 else "wrong" if score == 0 else "partly"


def _named(tokens: Sequence[int] | set[int]) -> str:
    some = sorted(tokens)
    return (", ".join(map(str, some[:6])) + (", ..." if len(some) > 6 else "")) or "none"
