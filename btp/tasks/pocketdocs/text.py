"""Draws a text: numbered documents whose sentences state facts, among sentences that state nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from btp.tasks.pocketdocs.vocabulary import (
    ADJECTIVES,
    CATEGORIES,
    CITIES,
    COLORS,
    GOODS,
    LABELS,
    NAMES,
    NOUNS,
    POEM,
    PREPOSITIONS,
    SPOKEN,
    THINGS,
    VERBS,
    cities_of,
    codes,
)

MOST = 4  # documents from one city


@dataclass(frozen=True)
class Sentence:
    """One sentence.

    Attributes:
        kind: header | code | sells | turned | password | says | gives | poem | filler.
        words: Its words and stops.
        key: What it tells something about: a writer, a city, a thing, a speaker; "" where nothing.
        value: What it tells, or the lines of a poem.
        document: Number of its document, counted from 1; 0 until it stands in one.
        start: Place of its first word in the text.
    """

    kind: str
    words: tuple[str, ...]
    key: str = ""
    value: str = ""
    document: int = 0
    start: int = 0

    @property
    def end(self) -> int:
        """Place behind its last word in the text."""
        return self.start + len(self.words)

    @property
    def cost(self) -> int:
        """Tokens: a word is one, a number as many as it has digits."""
        return count_tokens(self.words)


def count_tokens(words: Sequence[str]) -> int:
    """Tokens of some words; a number has one for each digit."""
    return sum(len(word) if word.isdigit() else 1 for word in words)


def _say(kind: str, text: str, key: str = "", value: str = "") -> Sentence:
    return Sentence(kind, tuple(text.split()), key, value)


def _some(rng: np.random.Generator, pool: Sequence[str], count: int) -> list[str]:
    order: list[int] = rng.permutation(len(pool))[:count].tolist()
    return [pool[i] for i in order]


def _headers(rng: np.random.Generator, split: str, length: int) -> list[Sentence]:
    """One header a document: 6 to 14 of them in full texts; a city has one to MOST of them, a writer one."""
    most = min(14, max(2, length // 24))
    count = int(rng.integers(min(6, most // 2 + 1), most + 1))
    writers: list[tuple[str, str]] = []
    for city in _some(rng, CITIES, len(CITIES)):
        taken = {name for name, _ in writers}
        able = [n for n in NAMES if n not in taken and city in cities_of(split, n)]
        writers += [(name, city) for name in _some(rng, able, int(rng.integers(1, MOST + 1)))]
        if len(writers) >= count:
            break
    order = rng.permutation(count)
    return [_header(number, *writers[i]) for number, i in enumerate(order, 1)]


def _header(number: int, name: str, city: str) -> Sentence:
    return _say("header", f"document {number} by {name} from {city} :", name, city)


def _code(rng: np.random.Generator, split: str, length: int, headers: list[Sentence]) -> list[Sentence]:
    most = min(20, max(2, length // 40))
    names = _some(rng, NAMES, int(rng.integers(max(2, most // 2), most + 1)))
    numbers = _some(rng, codes(split), len(names))
    return [_say("code", f"the code of {n} is {c} .", n, c) for n, c in zip(names, numbers, strict=True)]


def _sells(rng: np.random.Generator, split: str, length: int, headers: list[Sentence]) -> list[Sentence]:
    cities = sorted({h.value for h in headers})
    goods = _some(rng, GOODS, len(cities))
    return [_say("sells", f"{c} sells {g} .", c, g) for c, g in zip(cities, goods, strict=True)]


def _turned(rng: np.random.Generator, split: str, length: int, headers: list[Sentence]) -> list[Sentence]:
    found = []
    for thing in _some(rng, THINGS, int(rng.integers(1, min(5, length // 96 + 1) + 1))):
        for color in _some(rng, COLORS, int(rng.integers(2, 5))):
            found.append(_say("turned", f"the {thing} turned {color} .", thing, color))
    return found


def _password(rng: np.random.Generator, split: str, length: int, headers: list[Sentence]) -> list[Sentence]:
    number = codes(split)[rng.integers(len(codes(split)))]
    return [_say("password", f"the password is {number} .", "password", number)]


def _says(rng: np.random.Generator, split: str, length: int, headers: list[Sentence]) -> list[Sentence]:
    count = int(rng.integers(2, min(6, length // 64 + 2) + 1))
    pairs = zip(_some(rng, NAMES, count), _some(rng, SPOKEN, count), strict=True)
    return [_say("says", f"{name} says {word} .", name, word) for name, word in pairs]


def _gives(rng: np.random.Generator, split: str, length: int, headers: list[Sentence]) -> list[Sentence]:
    kinds = _some(rng, list(CATEGORIES), 2 if length < 200 else int(rng.integers(2, 5)))
    labels = _some(rng, LABELS, len(kinds))
    found = []
    for kind, label in zip(kinds, labels, strict=True):
        shown = _some(rng, CATEGORIES[kind], int(rng.integers(2, 5)))
        found += [_say("gives", f"{word} gives {label} .", word, label) for word in shown]
    return found


def _poem(rng: np.random.Generator, split: str, length: int, headers: list[Sentence]) -> list[Sentence]:
    lines = int(rng.integers(8, 13) if length >= 200 else rng.integers(1, max(1, length // 24) + 1))
    drawn = _some(rng, POEM, 4 * lines)
    poem = " , ".join(" ".join(drawn[i : i + 4]) for i in range(0, 4 * lines, 4))
    return [_say("poem", f"poem : {poem} .", "poem", poem)]


FACTS: dict[str, Callable[[np.random.Generator, str, int, list[Sentence]], list[Sentence]]] = {
    "code": _code,
    "sells": _sells,
    "turned": _turned,
    "password": _password,
    "says": _says,
    "gives": _gives,
    "poem": _poem,
}


def _filler(rng: np.random.Generator) -> Sentence:
    adjective, noun, verb, preposition, other = (
        pool[rng.integers(len(pool))] for pool in (ADJECTIVES, NOUNS, VERBS, PREPOSITIONS, NOUNS)
    )
    if rng.random() < 0.5:
        return _say("filler", f"the {noun} {verb} .")
    return _say("filler", f"the {adjective} {noun} {verb} {preposition} the {other} .")


def draw_text(rng: np.random.Generator, split: str, length: int, wanted: str = "says") -> list[Sentence]:
    """Draw the sentences of a text, in their order, with documents and places filled in.

    Facts of the kind `wanted` are always there, those of the others as long as there is room, fillers in what is left.
    Every sentence is as likely at every depth, but for two rules: a document begins with its header, and the last
    sentence of a text says what somebody says, where there is such a sentence.

    Args:
        rng: Source of everything drawn.
        split: train | calibration | validation | test; decides codes and the cities of writers.
        length: Tokens that the text has at most; it has hardly fewer.
        wanted: A kind of FACTS, or "header".
    """
    headers = _headers(rng, split, length)
    room = length - sum(h.cost for h in headers)
    body: list[Sentence] = []
    for kind in sorted(_some(rng, list(FACTS), len(FACTS)), key=lambda k: k != wanted):
        facts = FACTS[kind](rng, split, length, headers)
        cost = sum(f.cost for f in facts)
        if cost <= room:
            body, room = body + facts, room - cost
    while room >= 8:
        body.append(_filler(rng))
        room -= body[-1].cost
    return _arrange(rng, headers, [body[i] for i in rng.permutation(len(body))])


def _arrange(rng: np.random.Generator, headers: list[Sentence], body: list[Sentence]) -> list[Sentence]:
    last = next((i for i in reversed(range(len(body))) if body[i].kind == "says"), None)
    if last is not None:
        body = body[:last] + body[last + 1 :] + [body[last]]
    places = np.arange(len(body)) * len(headers) / max(len(body), 1) + rng.uniform(-0.5, 0.5, len(body))
    homes = np.sort(places.clip(0, len(headers) - 1).astype(int))
    if len(body):
        homes[-1] = len(headers) - 1
    text: list[Sentence] = []
    start = 0
    for number, header in enumerate(headers):
        for s in (header, *(body[i] for i in np.flatnonzero(homes == number))):
            text.append(Sentence(s.kind, s.words, s.key, s.value, number + 1, start))
            start += len(s.words)
    return text
