"""The values that a key of the config can take: types, ranges, choices, and how messages say them. No torch here."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

LARGEST_SEED = 2**63 - 1  # of torch
LARGEST_SAMPLER_SEED = 2**32 - 1  # of numpy's older generators, which Optuna's samplers take


@dataclass(frozen=True)
class Kind:
    """The values that a key takes.

    Attributes:
        takes: Its values in words, behind "Set KEY to" or as a sentence of its own.
        holds: True of these values.
        why: a sentence before that, "" for none.
    """

    takes: str
    holds: Callable[[Any], bool]
    why: str = ""

    def fault(self, key: str, given: object) -> str | None:
        """What is wrong with a value; None where nothing is."""
        if self.holds(given):
            return None
        advice = self.takes if self.takes.endswith(".") else f"Set {key} to {self.takes}."
        return " ".join(part for part in (f"{key} is {shown(given)}.", self.why, advice) if part)


def shown(given: object, most: int = 120) -> str:
    """A value as a message shows it."""
    text = " ".join(repr(given).split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def whole(least: int, most: int | None = None, why: str = "") -> Kind:
    """Whole numbers of a range."""
    until = "on" if most is None else f"to {most}"

    def holds(value: Any) -> bool:
        return is_whole(value) and value >= least and (most is None or value <= most)

    return Kind(f"a whole number from {least} {until}", holds, why)


def number(least: float, most: float | None = None, above: bool = False, unit: str = "", why: str = "") -> Kind:
    """Finite numbers of a range; `above` leaves out its lower end."""
    until = "" if most is None else f" {'and at most' if above else 'to'} {most:g}"
    start = f"above {least:g}" if above else f"from {least:g}"
    takes = f"a number {unit}{start}{until}" if most is not None or above else f"a number {unit}{start} on"

    def holds(value: Any) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            return False
        return (value > least if above else value >= least) and (most is None or value <= most)

    return Kind(takes, holds, why)


def choice(*options: object) -> Kind:
    """One of a few values."""
    names = ", ".join("null" if o is None else str(o).lower() if isinstance(o, bool) else str(o) for o in options)
    return Kind(f"Choose from: {names}.", lambda value: any(value is o or _same(value, o) for o in options))


def maybe(kind: Kind) -> Kind:
    """The same, or null."""
    takes = f"{kind.takes[:-1]}, null." if kind.takes.endswith(".") else f"{kind.takes}, or to null"
    return Kind(takes, lambda value: value is None or kind.holds(value), kind.why)


def listed(kind: Callable[[Any], bool], of: str) -> Kind:
    """A list."""
    return Kind(f"a list of {of}", lambda value: isinstance(value, list | tuple) and all(map(kind, value)))


def is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _same(value: Any, option: object) -> bool:
    return type(value) is type(option) and value == option


def is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value != "???"


def _is_devices(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(is_whole(i) and i >= 0 for i in value) and len(set(value)) == len(value)
    return value == "auto" or (is_whole(value) and value >= 1)


def _is_layer(value: Any) -> bool:
    share = isinstance(value, str) and re.fullmatch(r"(\d+)/(\d+)", value)
    if share:
        return int(share[1]) < int(share[2])
    return value is None or value in ("budget", "search") or (is_whole(value) and value >= 0)


def is_counts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(is_whole(n) and n >= 1 for n in value)


SWITCH = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("a text that is not empty", is_text)
TEXTS = listed(is_text, "names, as [a,b]")
KEYED = Kind("keys with values, as {key: value}", lambda value: isinstance(value, Mapping))
CONTROL = Kind(KEYED.takes, KEYED.holds, why="~controls.NAME does without a control.")
GROUP = Kind("It holds keys of its own.", lambda value: isinstance(value, Mapping))
DEVICES = Kind(
    "a whole number from 1 on, to a list of different device indices such as [0,2], or to auto for all devices",
    _is_devices,
)
LAYER = Kind(
    "a decoder layer (a whole number from 0 on, or a share of the depth such as 8/32), or to budget or search where "
    "the pruner has them",
    _is_layer,
)
STAGES = Kind(
    "a list of stages, as [{site: llm.layer.2, keep: fit}], or to null for the run's schedule",
    lambda value: value is None or (isinstance(value, list | tuple) and all(isinstance(s, Mapping) for s in value)),
)
CELLS_AT_ONCE = Kind(
    "a whole number other than 0: cells at once, or -1 for as many as there are cores",
    lambda value: is_whole(value) and value != 0,
)
CLASSES = Kind(
    "names of classes, as [cat,dog], to a file that lists them, or to null",
    lambda value: value is None or is_text(value) or (isinstance(value, list | tuple) and all(map(is_text, value))),
)
SEED, COUNT = whole(0, LARGEST_SEED), whole(1)
