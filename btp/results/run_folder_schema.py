"""Schema of the files of a run folder, as far as anything reads them; `btp.results.reader` explains it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from btp.results.shapes import (
    FLAG,
    NAMED,
    TEXT,
    TIME,
    Shape,
    either,
    keys,
    listed,
    mapped,
    number,
    one_of,
    optional,
    whole,
)
from btp.tasks.shown import brief

ROLES = ("baseline", "method", "control")
MOST_PATCHES = 4096  # on a side of a grid

_UNKNOWN = number(unknown=True)  # what has no value, as an F1 of no answer
_KEEP = either("tokens, a share or fit", number(0), TEXT)
_STAGES = listed(keys(site=TEXT, keep=_KEEP))
_BUDGET = keys(asked=optional(number(0)), reached=optional(number(0)), missed=optional(FLAG), moved=optional(whole(0)))
_SOLVER = keys(stages=_STAGES, budget=NAMED)
_ARM = keys(
    arm=TEXT,
    title=optional(TEXT),
    role=optional(one_of(*ROLES)),
    pruner=optional(TEXT),
    picture=optional(one_of("full", "shrunk", "none")),
    note=optional(TEXT),
    schedule=optional(_STAGES),
    solver=optional(_SOLVER),
    budget=optional(_BUDGET),
    moved=optional(whole(0)),
    slots=optional(number(0)),
)
_INERT = keys(checked=optional(whole(0)), identical=optional(FLAG), max_logit_difference=optional(_UNKNOWN))
_METRICS = keys(all=optional(mapped(_UNKNOWN)), by_ability=optional(mapped(mapped(_UNKNOWN))))
_CALIBRATED = keys(name=TEXT, own=FLAG, said=TEXT)

RUN = keys(
    state=optional(TEXT),
    identity=optional(TEXT),
    name=optional(TEXT),
    command=optional(TEXT),
    error=optional(TEXT),
    hardware=optional(TEXT),
    started=optional(TIME),
    seconds=optional(number(0)),
    versions=optional(mapped(TEXT)),
    phases=optional(mapped(number(0))),
    unit=optional(TEXT),
    arms=listed(_ARM, 1),
    inert=optional(_INERT),
    chance=optional(mapped(number())),
    calibration=optional(_CALIBRATED),
    prompt=optional(keys(sample=TEXT, text=TEXT)),
    metrics=optional(mapped(_METRICS)),
)
CONFIG = keys(
    model=optional(keys(name=optional(TEXT))),
    pruner=optional(keys(name=optional(TEXT))),
    task=optional(keys(name=optional(TEXT), reading=optional(listed(TEXT)))),
    budget=optional(NAMED),
    controls=optional(NAMED),
)
LAYERS = mapped(keys(visual=listed(number(0)), tokens=optional(listed(number(0)))))
_ENDS = dict.fromkeys(("p10", "p90", "low", "high"), optional(_UNKNOWN))
_QUANTITY = either("a number or its median with ends", number(unknown=True), keys(median=optional(_UNKNOWN), **_ENDS))
COST = mapped(either("costs of an arm by name, or a text", TEXT, mapped(optional(_QUANTITY))))
WORDS = mapped(
    keys(words=listed(TEXT), left_out=whole(0), arms=mapped(mapped(listed(whole(0, 100))))),
)  # sample -> its prompt, and per arm and layer the share of heads that hold each piece, in percent
CALIBRATION = keys(
    stages=optional(
        listed(keys(site=optional(TEXT), layer=optional(whole(-1)), keep=optional(_KEEP), balance=optional(number())))
    ),
    curves=optional(
        keys(
            changed=optional(listed(number())),
            attention=optional(listed(number())),
            tau=optional(number()),
            samples=optional(whole(0)),
        )
    ),
    calibration=optional(NAMED),
)
_GRID = listed(whole(1, MOST_PATCHES), 2, 2)
_VIEW = keys(grid=_GRID, tokens=optional(listed(whole(-1))), name=optional(TEXT))
_SHOWN = {"boxes": optional(listed(listed(number(), 4, 4))), "labels": optional(listed(TEXT))}
_SHOWN |= {"total": optional(whole(0))}
_PICTURE = either(
    "a grid, or views that have one each",
    Shape(
        "views",
        lambda value: isinstance(value, dict) and bool(value.get("views")),
        keys(views=listed(_VIEW), **_SHOWN).parts,
    ),
    keys(grid=_GRID, tokens=optional(listed(whole(-1))), **_SHOWN),
)
PICTURES = mapped(_PICTURE)

Fits = Callable[[Any], bool]
_TEXTS: tuple[str, Fits] = ("a text", lambda v: isinstance(v, str))
_FLAGS: tuple[str, Fits] = ("true or false", lambda v: isinstance(v, bool | np.bool_))
_NUMBERS: tuple[str, Fits] = ("a number", lambda v: _is_number(v) and bool(np.isfinite(v)))
_PERHAPS: tuple[str, Fits] = ("a number or null", lambda v: v is None or _is_number(v))
_SHARES: tuple[str, Fits] = ("true or false, or a share", lambda v: _FLAGS[1](v) or (_is_number(v) and 0 <= v <= 1))
_WHOLES: tuple[str, Fits] = ("a whole number of 0 or more", lambda v: _is_number(v) and v == v // 1 and v >= 0)
_PLACES: tuple[str, Fits] = ("a list of whole numbers of 0 or more", lambda v: _is_places(v))

SAMPLES = dict.fromkeys(("arm", "sample", "ability", "question", "reference", "prediction"), _TEXTS)
SAMPLES |= {"score": _PERHAPS, "unpruned": _TEXTS, "agreement": _SHARES, "kl": _PERHAPS}
SAMPLES |= {"tokens_avg": _NUMBERS, "total": _WHOLES}
TRACE = {"arm": _TEXTS, "sample": _TEXTS, "site": _TEXTS, "order": _WHOLES, "before": _WHOLES, "after": _WHOLES}
TRACE |= {"kept": _PLACES}
STEPS = dict.fromkeys(("arm", "sample", "site"), _TEXTS)
STEPS |= dict.fromkeys(("step", "computed", "revived"), _WHOLES)
REGIONS = {"sample": _TEXTS, "label": _TEXTS, "target": _FLAGS} | dict.fromkeys(("x0", "y0", "x1", "y1"), _NUMBERS)
MARKS = {"arm": _TEXTS, "sample": _TEXTS, "label": _TEXTS, "kind": _TEXTS}
MARKS |= dict.fromkeys(("x0", "y0", "x1", "y1"), _NUMBERS)


def odd_cell(frame: pd.DataFrame, columns: Mapping[str, tuple[str, Fits]]) -> str | None:
    """The first cell of a table that is not what its column takes, in words; None where all are."""
    for name, (takes, fits) in columns.items():
        for row, value in enumerate(frame[name]):
            if not fits(value):
                return f"column {name}, row {row} is {brief(value)}, not {takes}"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _is_places(value: Any) -> bool:
    if not isinstance(value, np.ndarray | list):
        return False
    places = np.asarray(value)
    return not places.size or bool(np.issubdtype(places.dtype, np.integer) and places.min() >= 0)
