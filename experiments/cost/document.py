"""Writes generated tables into docs/cost*.md, between markers that a reader does not see."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
DOCUMENTS = {"cost.md": "conventions", "cost_published.md": "published", "cost_measured.md": "measured"}  # its table


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
