"""The table of a comparison: the arms of all fields by budget and score, with tests, distances and fronts."""

from collections.abc import Mapping, Sequence
from math import isnan, nan
from typing import Any

import numpy as np
import pandas as pd

from btp.report.comparison.groups import Entry, Field, kinds_of_budget, level, tokens_avg
from btp.report.comparison.paired_tests import against, comparisons
from btp.report.comparison.pareto import pareto_front
from btp.report.tables import columns as c
from btp.report.tables.run_table import Table, arm_row, evicts, metric_columns, with_numbers
from btp.report.text.checks import moved
from btp.report.text.run_text import SAME_BUDGET
from btp.report.text.token_names import common

PRICES = ("tokens_avg", "flops_visual_pdrop", "flops_prefill", "prefill_ratio", "flops_model", "forward_ratio")
SLOTS = "slots"  # of methods that evict from the K/V cache, which save none of the others
_NAMES = {"unpruned": "unpruned", "random": "random", "downsampled": "down-sampled", "btp": "BTP"}
_ASKED = c.Column(
    "budget_asked",
    "asked",
    "Method",
    "tokens",
    "Layer-averaged visual tokens that the run asked for; what was reached stands beside it.",
)
_GIVEN = (c.METHOD, _ASKED, c.TOKENS, c.SLOTS, c.MACRO, c.RETAINED, c.HARD, c.EASY, c.READING, c.REST)
_COST = tuple(x for x in c.COST if x.key in (*PRICES, "kv_mib", "per_token_ratio", "per_second"))


def ranking(fields: Sequence[Field]) -> Table:
    """One table of all fields; every row also says its field, command, hardware and whether it is on a front."""
    frame = pd.concat([_field_rows(number, field) for number, field in enumerate(fields)], ignore_index=True)
    named = [
        c.Column(key, key, "Method", "text", f"The run's {key}.")
        for key in ("model", "task")
        if frame[key].nunique() > 1
    ]
    counts: dict[str, int] = {}
    for field in fields:
        for run in field.runs:
            for ability in run.abilities:
                n = run.rows(run.arms[0].arm)["ability"].eq(ability).sum()
                counts[ability] = max(counts.get(ability, 0), int(n))
    abilities = [c.ability_column(ability, n) for ability, n in counts.items()]
    if frame["samples"].nunique() > 1:
        named.append(c.SAMPLES)
    metrics = metric_columns([run for field in fields for run in field.runs])
    shown = [c.METHOD, *named, *_GIVEN[1:], *c.ANSWERS[:2], *_references(frame), *metrics, *_COST, *abilities]
    rows = f"{len(frame)} rows"
    runs = sum(len(field.runs) for field in fields)
    title = f"{'; '.join(field.name for field in fields)}: {runs} run{'s' if runs != 1 else ''}, {rows}"
    shown = [column.of(common(frame["unit"])) for column in shown if column is not c.SLOTS or evicts(frame)]
    return Table(frame, with_numbers(frame, shown), title)


def comparable(frame: pd.DataFrame, key: str) -> pd.Series:
    """[n] True for rows that one price is for: cache methods and those that prune tokens never share a front."""
    return frame["role"].eq("baseline") | frame["evicts"].eq(key == SLOTS)


def price(frame: pd.DataFrame, key: str) -> np.ndarray:
    """[n] what each row costs; the unpruned model's time is 1 of its own."""
    values = frame[key].to_numpy(float)
    return np.where(frame["role"].eq("baseline"), 1.0, values) if key in c.RATIOS else values


def _field_rows(number: int, field: Field) -> pd.DataFrame:
    rows = [_row(number, field, entry) for entry in field.entries]
    for row, found in zip(rows, against(field), strict=True):
        row |= found
    frame = pd.DataFrame(rows)
    frame["budget"] = kinds_of_budget(field.entries)
    for key in (*PRICES, SLOTS):
        frame[f"front_{key}"] = pareto_front(np.where(comparable(frame, key), price(frame, key), nan), frame["macro"])
    return frame.sort_values(["budget", "macro"], ascending=[True, False], kind="stable", na_position="last")


def _row(number: int, field: Field, entry: Entry) -> dict[str, Any]:
    run, arm = entry.run, entry.arm
    row = arm_row(run, arm)
    row |= {
        "model": field.model,
        "task": field.task,
        "field": number,
        "role": entry.role,
        "family": arm.title,
        "series": entry.series,
        "method": f"{entry.series}, {entry.note}" if entry.note else entry.series,
        "owners": "; ".join(entry.owners),
        "tokens_avg": tokens_avg(entry),
        "level": level(entry),
        "folder": str(run.path),
        "command": str(run.run.get("command") or ""),
        "hardware": str(run.cost.get("hardware") or run.run.get("hardware") or ""),
    }
    if isnan(row["visual_tokens"]):
        row["visual_tokens"] = _number((run.cost.get("unpruned") or {}).get("tokens_avg"))
    return row | _budget(entry, row["visual_tokens"])


def _budget(entry: Entry, total: float) -> dict[str, Any]:
    """What was asked: as run.json says, else as the config does for the method and what is matched to it."""
    said = entry.arm.budget
    asked = _number(said.get("asked"))
    matched = not entry.arm.evicts and (
        entry.role == "method" or entry.arm.pruner in ("random", "lattice", "downsampled")
    )
    if not said and matched and entry.role != "baseline":
        tokens, share = (_number(entry.run.setting(f"budget.{key}")) for key in ("tokens", "share"))
        asked = tokens if not isnan(tokens) else share * total
    notes = []
    layers = int(said.get("moved") or 0)
    if layers:
        notes.append(f"stages moved by {moved(layers)}")
    if said.get("missed"):
        notes.append(f"not at the {asked:.4g} {entry.run.unit} asked for")
    reached = _number(said.get("reached"))
    return {"budget_asked": asked, "budget_reached": reached, "budget_moved": layers, "budget_note": "; ".join(notes)}


def _references(frame: pd.DataFrame) -> list[c.Column]:
    rows = frame.to_dict("records")
    out = []
    for key, name in _NAMES.items():
        tests = max(comparisons([r for r in rows if r["field"] == f], key, "method") for f in set(frame["field"]))
        where = "" if key == "unpruned" else " at the same budget (within 5%)"
        group = f"Against {name}"
        out.append(
            c.Column(
                f"gap_{key}",
                f"to {name}, points",
                group,
                "points",
                f"Macro accuracy minus that of {name}{where}, in points, on the samples that both answered; 95% "
                "interval of a paired bootstrap.",
                less=False,
            )
        )
        out.append(
            c.Column(
                f"p_{key}_holm",
                f"p, {name}",
                group,
                "p",
                f"Paired test of the scores against those of {name}{where} on the same samples, after Holm's "
                f"correction over {tests} method rows (controls apart).",
            )
        )
    return out


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else nan


def same_budget(row: Mapping[str, Any]) -> bool:
    """Whether a row reached what was asked."""
    asked = row["budget_asked"]
    return isnan(asked) or abs(row["tokens_avg"] - asked) <= SAME_BUDGET * max(asked, 1)
