"""Words of the embedded text task, and which of their combinations belong to which split."""

from collections.abc import Iterator
from functools import cache

import numpy as np

from btp.tasks.drawn import SPLITS


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _listed(
    "mira tom anna karl lena paul nora emil ida hugo eva otto lisa finn olga axel ruth leo clara max sofia ben marta "
    "jan ella nils vera oscar rosa felix alma simon greta peter maya victor julia adam irene bruno tara kurt dora "
    "igor lucy marc zoe ivan"
)
CITIES = _listed(
    "oslo rome paris cairo lima delhi tokyo berlin madrid vienna dublin lisbon athens prague warsaw kyoto quito "
    "havana riga boston geneva milan porto turin"
)
GOODS = _listed("tea salt rice wool silk iron glass paper honey corn wine soap rope coal gold fish")
COLORS = _listed("red blue green white black yellow pink brown")
THINGS = _listed("lamp door flag car boat roof wall chair table box bag bell")
CATEGORIES = {
    "fruit": _listed("apple pear plum grape lemon cherry peach mango fig melon"),
    "animal": _listed("horse goat sheep cow wolf bear fox mouse duck crow"),
    "tool": _listed("hammer saw drill axe knife spoon needle brush shovel wrench"),
    "clothing": _listed("shirt coat hat shoe glove scarf belt sock dress cap"),
}
LABELS = _listed("zum blik dax fep wug toma rill kiki")
SPOKEN = _listed("yes no hello thanks maybe never always sorry welcome please soon later")
POEM = _listed(
    "moon star rain snow storm cloud dawn dusk shadow flame ember ash dust stone sand shore wave tide stream lake "
    "forest leaf branch root seed bloom thorn petal meadow hill valley peak cliff cave echo whisper song drum flute "
    "dance dream sleep wish hope grief joy tear smile heart soul breath voice road gate bridge tower crown sword "
    "mirror feather"
)
ADJECTIVES = _listed("old long quiet cold small heavy early slow deep narrow")
NOUNS = _listed("wind river street garden train market house window clock winter letter field")
VERBS = _listed("moves waits turns opens rests grows passes stays")
PREPOSITIONS = _listed("over near behind under beside")
FRAME = _listed(
    "document by from : . , ? the code of is sells turned password says gives poem question what who wrote where sold "
    "in city color now how many documents are does give was said last spoke recite"
)


def words() -> Iterator[str]:
    """Every word that a text, a question or an answer of this task can hold; a number is its digits."""
    listed = (NAMES, CITIES, GOODS, COLORS, THINGS, *CATEGORIES.values(), LABELS, SPOKEN, POEM)
    listed += (ADJECTIVES, NOUNS, VERBS, PREPOSITIONS, FRAME, "0123456789")
    yield from dict.fromkeys(word for group in listed for word in group)


def _edges(split: str, count: int) -> tuple[int, int]:
    """The part of `count` things in a row that belongs to a split."""
    shares, place = list(SPLITS.values()), list(SPLITS).index(split)
    return round(sum(shares[:place]) * count), round(sum(shares[: place + 1]) * count)


@cache
def codes(split: str) -> tuple[str, ...]:
    """The numbers of three digits that only this split uses."""
    low, high = _edges(split, 1000)
    return tuple(f"{n:03d}" for n in np.random.default_rng(20260101).permutation(1000)[low:high])


@cache
def cities_of(split: str, name: str) -> tuple[str, ...]:
    """The cities that a writer is from in this split and in no other."""
    low, high = _edges(split, len(CITIES))
    order = np.random.default_rng([20260102, NAMES.index(name)]).permutation(len(CITIES))
    return tuple(CITIES[i] for i in order[low:high])
