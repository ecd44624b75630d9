"""The Markdown file: what held, what did not, what could not be tried, and every figure behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.cost.tables import markdown as cost_tables

TITLES = {
    "oracle": "Removing equals hiding (largest distances, of the largest logit)",
    "picks": "Farthest points: the loop as one kernel and queued",
    "choices": "What each method keeps, beside the CPU",
    "smoke": "Whole runs",
    "spread": "Two devices",
    "quantized": "8 and 4 bits",
    "costs": "Cost of real shapes, random weights",
}


def markdown(found: Mapping[str, Any]) -> str:
    """Of the JSON file's content."""
    lines = [f"`{found['command']}`, {found['seconds'] / 60:.1f} minutes", "", "| | |", "|---|---|"]
    for name, value in found["machine"].items():
        shown = ("; ".join(value) or "none") if isinstance(value, list) else value or "not installed"
        lines.append(f"| {name} | {shown} |")
    lines += ["", "| step | held | did not hold | failed | left out |", "|---|---|---|---|---|"]
    for step, cells in found["steps"].items():
        lines.append(f"| {step} | {' | '.join(str(count) for count in counts(cells).values())} |")
    for step, cells in found["steps"].items():
        lines += ["", f"## {TITLES[step]}", "", *(_costs(found, cells) if step == "costs" else _table(cells))]
    return "\n".join(lines) + "\n"


def counts(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """How many cells held, did not hold, failed and were left out; what only measures holds."""
    kinds = [kind(cell) for cell in cells.values()]
    return {name: kinds.count(name) for name in ("held", "did not hold", "failed", "left out")}


def kind(cell: Mapping[str, Any]) -> str:
    """What became of a cell."""
    if "left_out" in cell:
        return "left out"
    if "failed" in cell:
        return "failed"
    return "held" if cell.get("holds", True) else "did not hold"


def _table(cells: Mapping[str, Mapping[str, Any]]) -> list[str]:
    columns = dict.fromkeys(name for cell in cells.values() for name in cell if name not in ("holds", *SAID))
    lines = [f"| case | {' | '.join(['', *columns])} |", "|" + "---|" * (len(columns) + 2)]
    for name, cell in cells.items():
        if said := next((cell[word] for word in SAID if word in cell), None):
            lines.append(f"| {name} | {kind(cell)}: {_one_line(said)} |" + " |" * len(columns))
        else:
            lines.append(f"| {name} | {kind(cell)} | {' | '.join(_shown(cell.get(column)) for column in columns)} |")
    return lines


SAID = ("left_out", "failed")


def _costs(found: Mapping[str, Any], cells: Mapping[str, Mapping[str, Any]]) -> list[str]:
    measured = {name: cell for name, cell in cells.items() if not set(SAID) & cell.keys()}
    lines = [cost_tables({"command": found["command"], "cells": measured})] if measured else []
    return lines + [
        f"{name}: {kind(cell)}: {_one_line(cell[word])}"
        for name, cell in cells.items()
        for word in SAID
        if word in cell
    ]


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {_shown(inner)}" for key, inner in value.items())
    return f"{value:.3g}" if isinstance(value, float) else _one_line(str(value))


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
