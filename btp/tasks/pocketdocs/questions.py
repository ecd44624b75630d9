"""Questions about a text, by ability. Every question has one right answer that the text decides."""

from collections import defaultdict
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from btp.tasks.pocketdocs.text import Sentence
from btp.tasks.pocketdocs.vocabulary import CATEGORIES

T = TypeVar("T")
QA = tuple[str, str, tuple[Sentence, ...]]  # question, answer, the sentences that the answer needs


def ask(ability: str, text: list[Sentence], rng: np.random.Generator) -> QA | None:
    """Ask one question of `ability`, or return None where this text allows none."""
    return ABILITIES[ability][1](text, rng)


def _of(text: list[Sentence], kind: str) -> list[Sentence]:
    return [s for s in text if s.kind == kind]


def _pick(rng: np.random.Generator, options: list[T]) -> T | None:
    return options[rng.integers(len(options))] if options else None


def _needle(text: list[Sentence], rng: np.random.Generator) -> QA | None:
    return _pick(rng, [("what is the password ?", s.value, (s,)) for s in _of(text, "password")])


def _lookup(text: list[Sentence], rng: np.random.Generator) -> QA | None:
    return _pick(rng, [(f"what is the code of {s.key} ?", s.value, (s,)) for s in _of(text, "code")])


def _document(text: list[Sentence], rng: np.random.Generator) -> QA | None:
    header = _pick(rng, _of(text, "header"))
    if header is None:
        return None
    if rng.random() < 0.5:
        return f"who wrote document {header.document} ?", header.key, (header,)
    return f"where is document {header.document} from ?", header.value, (header,)


def _hop(text: list[Sentence], rng: np.random.Generator) -> QA | None:
    sold = {s.key: s for s in _of(text, "sells")}
    pairs = [(h, sold[h.value]) for h in _of(text, "header") if h.value in sold]
    apart = [(h, s) for h, s in pairs if h.document != s.document]
    return _pick(rng, [(f"what is sold in the city of {h.key} ?", s.value, (h, s)) for h, s in apart])


def _latest(text: list[Sentence], rng: np.random.Generator) -> QA | None:
    turned = _of(text, "turned")
    last = {s.key: s for s in turned}
    every = {key: tuple(s for s in turned if s.key == key) for key in last}
    return _pick(rng, [(f"what color is the {key} now ?", s.value, every[key]) for key, s in last.items()])


def _count(text: list[Sentence], rng: np.random.Generator) -> QA | None:
    """The count is drawn among those that there are, before the city that is counted: none is much commoner."""
    shown: dict[str, list[Sentence]] = defaultdict(list)
    for header in _of(text, "header"):
        shown[header.value].append(header)
    target = rng.choice(sorted({len(s) for s in shown.values()}))
    options = [(f"how many documents are from {c} ?", str(len(s)), tuple(s)) for c, s in shown.items()]
    return _pick(rng, [option for option in options if option[1] == str(target)])


def _few_shot(text: list[Sentence], rng: np.random.Generator) -> QA | None:
    """A word that the text does not hold, of a kind whose other words it does."""
    shown = {s.key: s for s in _of(text, "gives")}
    options = []
    for kind in CATEGORIES.values():
        examples = tuple(shown[word] for word in kind if word in shown)
        if examples:
            new = [word for word in kind if word not in shown]
            options.append((f"what does {new[rng.integers(len(new))]} give ?", examples[0].value, examples))
    return _pick(rng, options)


def _recent(text: list[Sentence], rng: np.random.Generator) -> QA | None:
    said = _of(text, "says")
    if not said:
        return None
    last = said[-1]
    return _pick(rng, [("what was said last ?", last.value, (last,)), ("who spoke last ?", last.key, (last,))])


def _recite(text: list[Sentence], rng: np.random.Generator) -> QA | None:
    return _pick(rng, [("recite the poem .", s.value, (s,)) for s in _of(text, "poem")])


# ability: kind of sentence that it cannot do without, and the function that asks
ABILITIES: dict[str, tuple[str, Callable[[list[Sentence], np.random.Generator], QA | None]]] = {
    "needle": ("password", _needle),
    "lookup": ("code", _lookup),
    "document": ("header", _document),
    "hop": ("sells", _hop),
    "latest": ("turned", _latest),
    "count": ("header", _count),
    "few_shot": ("gives", _few_shot),
    "recent": ("says", _recent),
    "recite": ("poem", _recite),
}
