"""What the plots of a comparison's page draw in the browser: every row's prices and scores, and what to say of it."""

from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any

import pandas as pd

from btp.report.comparison.table import price
from btp.report.figures.pareto_figures import PRICES, joined, shortened
from btp.report.figures.style import Look
from btp.report.tables.columns import ABILITY, DASH, METRICS, Column, number, spread

_KINDS = {"tokens_avg": "tokens", "prefill_ratio": "times"}
_REFERENCES = ("random", "downsampled", "btp")
_SAID = (*(f"{of}_{name}{end}" for name in _REFERENCES for of, end in (("gap", ""), ("p", "_holm"))), "agreement")


def plot_data(
    rows: pd.DataFrame, columns: Sequence[Column], looks: Mapping[str, Look], numbers: Mapping[str, int]
) -> dict[str, Any] | None:
    """A field's rows as the page's plots read them.

    Args:
        rows: the field's rows of the ranking.
        columns: those of the table; accuracies, agreement and the task's metrics become what can be drawn upwards.
        looks: per series.
        numbers: Numbers of runs, by folder.

    Returns:
        prices and scores (key, title, kind), panels (keys of the abilities), series (name, short, role, look: its place
        in `looks`, marker), lines (places of the rows that one joins) and rows (series, role, method, note, run,
        values: {key: [value, low, high]} with None where there is none, texts: {key: text}, said: [title, text] pairs);
        None where nothing can be drawn.
    """
    prices = [p for p in PRICES if pd.Series(price(rows, p.key), rows.index)[rows["role"].ne("baseline")].notna().any()]
    scores = [
        c
        for c in columns
        if (c.kind == "percent" or c.group == METRICS) and rows.loc[rows["role"].ne("baseline"), c.key].notna().any()
    ]
    if not prices or not scores:
        return None
    names, short = list(looks), shortened(list(looks))
    paid = {p.key: price(rows, p.key) for p in prices}
    present = rows.drop_duplicates("series").set_index("series")["role"]
    return {
        "prices": [{"key": p.key, "title": p.axis, "kind": _KINDS.get(p.key, "flops")} for p in prices],
        "scores": [{"key": c.key, "title": _title(c), "kind": c.kind} for c in scores],
        "panels": [{"key": c.key, "title": c.title} for c in scores if c.group == ABILITY],
        "series": [
            {"name": name, "short": short[name], "role": present[name]}
            | {"look": names.index(name), "marker": looks[name].marker}
            for name in names
            if name in present.index
        ],
        "lines": joined(rows),
        "rows": [
            _row(row, {key: float(values[i]) for key, values in paid.items()}, scores, columns, numbers)
            for i, (_, row) in enumerate(rows.iterrows())
        ],
    }


def _title(column: Column) -> str:
    if column.group == "Accuracy, %":
        return f"{column.title} accuracy, %"
    return f"{column.title}, %" if column.kind == "percent" and "%" not in column.title else column.title


def _row(
    row: pd.Series,
    paid: Mapping[str, float],
    scores: Sequence[Column],
    columns: Sequence[Column],
    numbers: Mapping[str, int],
) -> dict[str, Any]:
    values = {c.key: [_plain(row.get(c.key + end)) for end in ("", "_low", "_high")] for c in scores}
    values |= {key: [_plain(v), *(_plain(row.get(key + end)) for end in ("_low", "_high"))] for key, v in paid.items()}
    texts = {c.key: _text(row, c) for c in scores}
    texts |= {key: number(v, _KINDS.get(key, "flops")) for key, v in paid.items()}
    said = [[c.title, _text(row, c)] for c in columns if c.key in _SAID]
    return {
        "series": row["series"],
        "role": row["role"],
        "method": row["method"],
        "note": row["budget_note"],
        "run": numbers[row["folder"]],
        "values": values,
        "texts": texts,
        "said": [*([title, text] for title, text in said if text != DASH), ["samples", str(row["samples"])]],
    }


def _text(row: Mapping[str, Any], column: Column) -> str:
    text, ends = number(row.get(column.key), column.kind), spread(row, column)
    return f"{text} ({ends})" if ends and text != DASH else text


def _plain(value: Any) -> float | None:
    """A number that JSON has; None where there is none."""
    return None if value is None or isnan(value) else round(float(value), 9) if abs(value) < 1e6 else float(value)
