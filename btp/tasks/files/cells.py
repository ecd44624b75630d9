"""Parsing of the cells of a table of questions, whatever the format: absent, a text, a list of texts, boxes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from math import isnan
from typing import Any

from btp.tasks.files.images import PictureCell
from btp.tasks.files.json_nesting import json_of
from btp.tasks.sample import Box
from btp.tasks.shown import brief


def absent(value: Any) -> bool:
    """True of null, NaN, a blank text, and of a list or dict with nothing else in it."""
    if isinstance(value, list | tuple):
        return all(absent(v) for v in value)
    if isinstance(value, Mapping):
        return all(absent(v) for v in value.values())
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and isnan(value))


def given(row: Mapping[str, Any], *names: str) -> Any:
    """The first of these columns that holds something; None where none does."""
    return next((row[name] for name in names if name in row and not absent(row[name])), None)


def text_of(value: Any, name: str, where: str) -> str:
    """A text, a number or a date as text; true and false are yes and no.

    Args:
        name: Name of its column.
        where: table and sample, for messages.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or isinstance(value, Mapping | list | tuple | PictureCell):
        raise ValueError(f"{where}: `{name}` holds {brief(value)}, which is neither text nor a number. Correct it.")
    return str(value)


def texts_of(value: Any, name: str, where: str) -> dict[str, str]:
    """A list of texts, or a dict of them, by key; a list's keys are its places. What is absent at its end is left out.

    Raises:
        ValueError: it is a single text or something else, or something in the middle is absent.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError):
            value = json_of(value)
    if value is None:
        return {}
    if not isinstance(value, list | tuple | Mapping):
        raise ValueError(
            f"{where}: `{name}` is {brief(value)}, which is no list. Write it as one, such as "
            '["cat", "dog"], in csv and tsv too.'
        )
    found = dict(value) if isinstance(value, Mapping) else {str(i): v for i, v in enumerate(value)}
    while found and absent(next(reversed(found.values()))):
        found.popitem()
    return {str(key): text_of(v, name, where) for key, v in found.items()}


def labels_of(value: Any, boxes: int, where: str) -> tuple[str, ...]:
    """A name per box, "" for those at the end that have none; nothing where no box has one.

    Raises:
        ValueError: it is no list of texts, or there are more names than boxes.
    """
    labels = tuple(texts_of(value, "labels", where).values())
    if len(labels) > boxes:
        raise ValueError(
            f"{where}: `labels` holds {len(labels)} names, but `boxes` {boxes} box(es). Give each name a "
            "box, or drop it."
        )
    return (*labels, *[""] * (boxes - len(labels))) if labels else ()


def boxes_of(value: Any, where: str) -> tuple[Box, ...]:
    """Boxes in shares of a picture's sides.

    Raises:
        ValueError: one is not [x0, y0, x1, y1] within 0 and 1.
    """
    for box in value if isinstance(value, list | tuple) else [value]:
        four = isinstance(box, list | tuple) and len(box) == 4 and all(type(v) in (int, float) for v in box)
        if not four or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
            raise ValueError(
                f"{where}: `boxes` holds {brief(box)}, which is not [x0, y0, x1, y1] in shares of the picture's "
                "sides. Correct it."
            )
    return tuple((float(x0), float(y0), float(x1), float(y1)) for x0, y0, x1, y1 in value)
