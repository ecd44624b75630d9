"""Schema validation of JSON and YAML files: messages name file, key, what was found and what it takes.

A shape is data: `keys(tau=number(), samples=optional(whole(1)))`. Keys that a shape does not name are not looked at.
"""

from __future__ import annotations

import datetime
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from btp.tasks.files.json_nesting import LEVELS, json_of, nests_deeper
from btp.tasks.shown import brief, short

MISSING = object()
Parts = Iterable[tuple[object, Any, "Shape"]]


@dataclass(frozen=True)
class Shape:
    """Schema of a value.

    Attributes:
        takes: Its values in words, as in "not a number".
        fits: whether a value is of this kind, whatever lies inside.
        parts: key, value and shape of what lies inside of one that fits.
    """

    takes: str
    fits: Callable[[Any], bool]
    parts: Callable[[Any], Parts] = lambda value: ()


TEXT = Shape("a text", lambda value: isinstance(value, str))
FLAG = Shape("true or false", lambda value: isinstance(value, bool))
ANYTHING = Shape("a value", lambda value: value is not MISSING)
TIME = Shape("a time such as 2026-01-31T12:00:00", lambda value: isinstance(value, str) and _is_time(value))
NAMED = Shape("keys with values", lambda value: isinstance(value, Mapping))


def number(low: float = -math.inf, high: float = math.inf, unknown: bool = False) -> Shape:
    """A finite number; nan as well where it may be unknown."""

    def fits(value: Any) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        return (unknown and math.isnan(value)) or (low <= value <= high and abs(value) <= sys.float_info.max)

    return Shape(f"a number{_range(low, high)}", fits)


def whole(low: float = -math.inf, high: float = math.inf) -> Shape:
    """A whole number."""

    def fits(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return Shape(f"a whole number{_range(low, high)}", fits)


def one_of(*known: str) -> Shape:
    """One of these texts."""
    return Shape(f"one of {', '.join(known)}", lambda value: isinstance(value, str) and value in known)


def optional(shape: Shape) -> Shape:
    """This, or null, or nothing at all."""
    return Shape(
        f"{shape.takes} or null",
        lambda value: value is None or value is MISSING or shape.fits(value),
        lambda value: () if value is None or value is MISSING else shape.parts(value),
    )


def listed(shape: Shape, least: int = 0, most: float = math.inf) -> Shape:
    """A list of these."""
    length = "" if (least, most) == (0, math.inf) else f" of {most}" if least == most else f" of {least} or more"
    return Shape(
        f"a list{length}",
        lambda value: isinstance(value, list) and least <= len(value) <= most,
        lambda value: ((i, inside, shape) for i, inside in enumerate(value)),
    )


def mapped(shape: Shape) -> Shape:
    """Any keys, each with one of these."""
    return Shape(
        NAMED.takes,
        lambda value: isinstance(value, Mapping),
        lambda value: ((key, inside, shape) for key, inside in value.items()),
    )


def keys(only: bool = False, /, **shapes: Shape) -> Shape:
    """These keys, each with its own shape; they are needed unless optional.

    Args:
        only: other keys are refused.
    """

    def parts(value: Mapping[Any, Any]) -> Iterator[tuple[object, Any, Shape]]:
        for name, shape in shapes.items():
            yield name, value.get(name, MISSING), shape
        for name in value if only else ():
            if name not in shapes:
                yield name, value[name], Shape(f"one of its keys {', '.join(shapes)}", lambda value: False)

    return Shape(NAMED.takes, lambda value: isinstance(value, Mapping), parts)


def either(takes: str, *shapes: Shape) -> Shape:
    """The first of these that fits.

    Args:
        takes: all of them in words.
    """

    def parts(value: Any) -> Parts:
        return next(shape for shape in shapes if shape.fits(value)).parts(value)

    return Shape(takes, lambda value: any(shape.fits(value) for shape in shapes), parts)


def fault(value: Any, shape: Shape, key: str = "") -> str | None:
    """What is wrong with a value first, as "curves.changed.3 is 'many', not a number"; None where nothing is."""
    if not shape.fits(value):
        if value is MISSING:
            return f"{key} is missing; it takes {shape.takes}"
        return f"{key} is {brief(value)}, not {shape.takes}" if key else f"it holds {brief(value)}, not {shape.takes}"
    for name, inside, its in shape.parts(value):
        said = fault(inside, its, f"{key}.{short(name, 60)}" if key else short(name, 60))
        if said:
            return said
    return None


def read_json(path: Path, shape: Shape, advice: str) -> Any:
    """What a JSON file holds.

    Args:
        shape: Shape that it has to have.
        advice: what to do where it has not, the end of every message.

    Raises:
        ValueError: it is missing, cannot be read, or has another shape; says which file and key.
    """
    return _read(path, json_of, shape, advice)


def read_yaml(path: Path, shape: Shape, advice: str) -> Any:
    """As `read_json`, of a YAML file."""
    return _read(path, yaml.safe_load, shape, advice)


def _read(path: Path, parse: Callable[[str], Any], shape: Shape, advice: str) -> Any:
    if not path.exists():
        raise ValueError(f"{path} is missing. {advice}")
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path} cannot be read: it is nested too deep. {advice}") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = short(error.strerror if isinstance(error, OSError) else error, 200).rstrip(".")
        raise ValueError(f"{path} cannot be read: {reason}. {advice}") from None
    said = f"it is nested more than {LEVELS} levels deep" if nests_deeper(value) else fault(value, shape)
    if said:
        raise ValueError(f"{path} is broken: {said}. {advice}")
    return value


def _is_time(text: str) -> bool:
    try:
        datetime.datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _range(low: float, high: float) -> str:
    if high < math.inf:
        return f" from {low:g} to {high:g}"
    return f" of {low:g} or more" if low > -math.inf else ""
