"""Paired tests of every row against the unpruned model, random selection, the down-sampled picture and BTP."""

from collections.abc import Mapping, Sequence
from math import isnan, nan
from typing import Any

import pandas as pd

from btp.report.comparison.groups import Entry, Field, level, pair, tokens_avg
from btp.report.comparison.series_names import RANDOM
from btp.report.text.run_text import SAME_BUDGET
from btp.results.reader import RunFolder
from btp.results.stats import Interval, holm, paired_gap, paired_p

REFERENCES = ("unpruned", "random", "downsampled", "btp")


def against(field: Field) -> list[dict[str, Any]]:
    """Tests and distances of each entry of a field, in its order.

    A reference is at the same budget where its layer-averaged tokens are within 5%, and its slots of the cache where
    both evict from it; of several, the one with the same stages is taken, then one of the same run, then the nearest.
    Holm's correction is over all methods of the field for each reference, and over all its controls apart from them.

    Returns:
        Per entry and reference R: gap_R (macro accuracy minus the reference's, with _low and _high), p_R,
        p_R_holm, pairs_R (samples that both answered), reference_R (its run); nan and "" where there is none.
    """
    found = [{} for _ in field.entries]
    for name in REFERENCES:
        chosen = [_reference(field, entry, name) for entry in field.entries]
        for row, entry, reference in zip(found, field.entries, chosen, strict=True):
            row |= _held(entry, reference, name)
        for role in ("method", "control"):
            family = [i for i, entry in enumerate(field.entries) if entry.role == role]
            for i, p in zip(family, holm([found[i][f"p_{name}"] for i in family]), strict=True):
                found[i][f"p_{name}_holm"] = p
    return found


def is_random(entry: Entry) -> bool:
    """Random selection."""
    return bool({*RANDOM} & {entry.arm.arm, entry.arm.pruner}) and entry.role == "control"


def is_downsampled(entry: Entry) -> bool:
    """A shrunk picture of as many pixels as its visual tokens cover, as a control or as a run's method."""
    return entry.arm.is_downsampled


def is_btp(entry: Entry) -> bool:
    """BTP as a run's method, in any variant."""
    return entry.role == "method" and entry.arm.pruner == "btp"


_WANTED = {"random": is_random, "downsampled": is_downsampled, "btp": is_btp}


def _reference(field: Field, entry: Entry, name: str) -> Entry | None:
    if entry.role == "baseline":
        return None
    if name == "unpruned":
        return field.baseline
    wanted = _WANTED[name]
    mirrored = name == "btp" and (is_random(entry) or is_downsampled(entry))  # the row of BTP has that test already
    mirrored |= name == "downsampled" and is_random(entry)  # and that of the down-sampled picture this one
    if wanted(entry) or mirrored:
        return None
    mine = level(entry)
    alike = [e for e in field.entries if wanted(e) and e.arm.evicts is entry.arm.evicts]
    near = [e for e in alike if _near(level(e), mine) and _near(tokens_avg(e), tokens_avg(entry))]
    near = [e for e in near if len(pair(entry.rows, e.rows)[0])]
    return min(near, key=lambda e: _distance(entry, e, mine), default=None)


def _near(one: float, other: float) -> bool:
    return abs(one - other) <= SAME_BUDGET * max(other, 1)


def _distance(entry: Entry, other: Entry, mine: float) -> tuple[bool, bool, float]:
    return other.stages != entry.stages, _path(other.run) != _path(entry.run), abs(level(other) - mine)


def _path(run: RunFolder) -> str:
    return str(run.path)


def _held(entry: Entry, reference: Entry | None, name: str) -> dict[str, Any]:
    a, b = pair(entry.rows, reference.rows) if reference is not None else (entry.rows[:0], entry.rows[:0])
    gap = paired_gap(by_ability(a, b)) if len(a) else Interval(nan, nan, nan, 0)
    return {
        f"gap_{name}": gap.mean,
        f"gap_{name}_low": gap.low,
        f"gap_{name}_high": gap.high,
        f"p_{name}": paired_p(a["score"], b["score"]) if len(a) else nan,
        f"p_{name}_holm": nan,
        f"pairs_{name}": gap.n if reference is not None else nan,
        f"reference_{name}": reference.run.path.name if reference is not None else "",
    }


def by_ability(a: pd.DataFrame, b: pd.DataFrame) -> Sequence[tuple[pd.Series, pd.Series]]:
    """Scores of paired rows, ability by ability."""
    of = a["ability"].to_numpy()
    return [(a.loc[of == ability, "score"], b.loc[of == ability, "score"]) for ability in dict.fromkeys(of)]


def comparisons(rows: Sequence[Mapping[str, Any]], name: str, role: str) -> int:
    """How many tests against a reference Holm's correction was over, for the rows of a role."""
    return sum(1 for row in rows if row["role"] == role and not isnan(row[f"p_{name}"]))
