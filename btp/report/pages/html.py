"""HTML helpers of all pages: templates, cells, numbers."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from btp.report.tables.columns import DASH, Column, number, spread, told_from_one
from btp.report.text.run_text import NOTABLE


@cache
def environment() -> Environment:
    """Templates that escape what they are given and refuse what they are not."""
    return Environment(
        loader=PackageLoader("btp.report.pages", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def grouped(columns: Sequence[Column]) -> tuple[list[dict[str, Any]], set[str]]:
    """Groups of neighbouring columns with their widths, and the keys of columns that open a group, but the first."""
    groups: list[dict[str, Any]] = []
    starts = set()
    for column in columns:
        if not groups or groups[-1]["name"] != column.group:
            groups.append({"name": column.group, "width": 0})
            starts |= {column.key} if len(groups) > 1 else set()
        groups[-1]["width"] += 1
    return groups, starts


def cell(row: Mapping[str, Any], column: Column, base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A number, its interval, what to sort by, and a mark where it differs from the base row in its own test."""
    value = row.get(column.key)
    p, mark = row.get(f"{column.key}_p"), ""
    if base is not None and p is not None and p < NOTABLE:
        mark = "drop" if value < base[column.key] else "gain"
    return {
        "text": number(value, column.kind),
        "spread": spread(row, column),
        "sort": str(value) if column.kind == "text" else "" if value is None or value != value else f"{value:.9g}",
        "mark": mark,
        "unsure": column.kind == "times" and not told_from_one(row, column.key),
    }


def keep_text(keep: Any) -> str:
    """A planned keep in words: a share of the original visual tokens, or tokens."""
    if keep is None:
        return DASH
    return (
        f"{100 * keep:.3g}%"
        if isinstance(keep, float)
        else "none"
        if keep == 0
        else f"{keep} tokens"
        if isinstance(keep, int)
        else str(keep)
    )


def duration(seconds: float | None) -> str:
    """Seconds in the unit that reads best."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
