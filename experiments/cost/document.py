"""Writes generated tables into docs/cost*.md, between markers that a reader does not see, and the data of reports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from btp.report.text.real_shapes import DATA
from experiments.cost.growth_table import table as growth_table
from experiments.cost.shape_table import report_lines, shapes_table

DOCS = Path(__file__).resolve().parents[2] / "docs"
RESULTS = Path(__file__).parent / "results"
DOCUMENTS = {  # the tables of each
    "cost.md": ("conventions",),
    "cost_published.md": ("published",),
    "cost_measured.md": ("shapes", "growth", "measured"),
}


def replaced(text: str, name: str, table: str, document: str) -> str:
    """The text of a document with `table` between the markers of that name.

    Raises:
        ValueError: a marker is missing.
    """
    begin, end = f"<!-- {name}: generated -->", f"<!-- {name}: end -->"
    if begin not in text or end not in text.partition(begin)[2]:
        raise ValueError(f"docs/{document} has no {begin} with {end} behind it. Put both where the table belongs.")
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}"


def filled(document: str, tables: Mapping[str, str]) -> str:
    """A document with its tables as they are now."""
    text = (DOCS / document).read_text(encoding="utf-8")
    for name in DOCUMENTS[document]:
        text = replaced(text, name, tables[name].rstrip(), document)
    return text


def measured_tables() -> dict[str, str]:
    """What lies in results/, as Markdown."""
    return {
        "shapes": shapes_table(_result("shapes-cpu")),
        "growth": growth_table(_result("growth-cpu")),
        "measured": (RESULTS / "pocket-cpu.md").read_text(encoding="utf-8"),
    }


def report_data() -> str:
    """What reports say of real shapes, as JSON."""
    return json.dumps(report_lines(_result("shapes-cpu")), indent=1) + "\n"


def write_measured() -> None:
    """Bring docs/cost_measured.md and the data of reports up to what lies in results/."""
    (DOCS / "cost_measured.md").write_text(filled("cost_measured.md", measured_tables()), encoding="utf-8")
    DATA.write_text(report_data(), encoding="utf-8")


def _result(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
