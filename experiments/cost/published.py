"""Holds every published figure of cost against our formulas, and writes the tables of docs/cost*.md.

    python -m experiments.cost.published

`published.yaml` beside this file has the figures and the schedules they belong to.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from btp.measure.architecture import Architecture, Encoder, Stack
from btp.measure.flops import shortened
from btp.measure.segments import square
from experiments.cost.conventions import Convention, cache_bytes, count
from experiments.cost.document import DOCS, DOCUMENTS, filled, measured_tables
from experiments.cost.schedules import layers, visual

DATA = Path(__file__).with_name("published.yaml")
TOLERANCE = 0.02  # beyond it a row has to say why
LARGE = {"TFLOPs": 1e12, "GFLOPs": 1e9, "GFLOPs a layer": 1e9, "KV GB": 1e9, "KV MB": 1e6, "KV MiB": 2**20}


@dataclass(frozen=True)
class Row:
    """A published figure beside ours.

    Attributes:
        paper, at, model, what: where it stands and what it is of.
        unit: of both figures.
        published, ours: None where the paper does not say enough for ours.
        convention: that both follow; empty for tokens and caches.
        why: what to know about it.
    """

    paper: str
    at: str
    model: str
    what: str
    unit: str
    published: float
    ours: float | None
    convention: str
    why: str

    @property
    def off(self) -> float | None:
        """Ours over theirs, less 1; None without ours."""
        return None if self.ours is None else self.ours / self.published - 1

    def __str__(self) -> str:
        ours = "-" if self.ours is None else _digits(self.ours, self.published)
        off = "-" if self.off is None else f"{100 * self.off:+.1f} %"
        figures = f"{self.published:g} | {ours} | {self.unit} | {off}"
        return f"| {self.at} | {self.model} | {self.what} | {figures} | {self.convention} | {self.why} |"


def rows() -> Iterator[Row]:
    """All figures of the yaml, in its order."""
    data = yaml.safe_load(DATA.read_text(encoding="utf-8"))
    conventions = {name: Convention(**fields) for name, fields in data["conventions"].items()}
    towers = {name: _encoder(fields) for name, fields in data["towers"].items()}
    models = {name: _architecture(fields, towers) for name, fields in data["models"].items()}
    names = {key: fields.get("name") for part in ("models", "towers") for key, fields in data[part].items()}
    for group in data["groups"]:
        shared = {key: value for key, value in group.items() if key != "rows"}
        for entry in (shared | row for row in group["rows"]):
            if "tower" in entry:
                ours = _merged(towers[entry["tower"]], entry["merged"])
            else:
                ours = _ours(entry, models[entry["model"]], conventions)
            counted = "FLOPs" in entry["unit"]
            yield Row(
                entry["paper"],
                entry["at"],
                names[entry.get("tower") or entry["model"]],
                entry["what"],
                entry["unit"],
                entry["published"],
                None if ours is None else ours / LARGE.get(entry["unit"], 1),
                entry["convention"] if counted else "",
                entry.get("why", ""),
            )


def _ours(row: Mapping[str, Any], sizes: Architecture, conventions: Mapping[str, Convention]) -> float | None:
    """Our figure in plain units; of a share, in percent."""
    tokens = visual(row, sizes.decoder.layers)
    if tokens is None:
        return None
    if row["unit"] == "tokens":
        return sum(tokens) / len(tokens)
    if row["unit"].startswith("KV"):
        text = row["text"] if row.get("cache") == "all" else 0
        held = cache_bytes(sizes.decoder, [n + text for n in tokens], grouped=row.get("shared", True))
        return 100 * held / cache_bytes(sizes.decoder, layers(row["full"])) if row["unit"] == "KV %" else held
    modules = sum(row.get("modules", ())) * 12 * sizes.decoder.hidden**2
    settings = (row.get("text", 0), row.get("pictures", 1), modules)
    convention = conventions[row["convention"]]
    found = count(convention, sizes, tokens, *settings)
    if row["unit"] == "FLOPs %":
        return 100 * found / count(convention, sizes, layers(row["full"]), *settings)
    return found


def _merged(encoder: Encoder, fewer: int) -> float:
    """Operations of a tower in which `fewer` tokens merge away between attention and MLP of every block."""
    alive, passed = encoder.patches + encoder.class_tokens, []
    for _ in range(encoder.stack.layers):
        passed.append((alive, alive - fewer))
        alive -= fewer
    sizes = Architecture(encoder.stack, 0, encoder, ((encoder.stack.hidden, 1000),))
    return shortened(sizes, square(encoder, 1), passed, [1]) / 2  # the paper counts a multiply-add once


def _encoder(fields: Mapping[str, Any]) -> Encoder:
    rest = {key: value for key, value in fields.items() if key not in ("name", "stack", "projector")}
    return Encoder(stack=Stack(**fields["stack"], gated=False), **rest)


def _architecture(fields: Mapping[str, Any], towers: Mapping[str, Encoder]) -> Architecture:
    decoder = Stack(**fields["decoder"], gated=True)
    tower = towers.get(fields.get("tower", ""))
    projector = () if tower is None else ((tower.stack.hidden, decoder.hidden), (decoder.hidden, decoder.hidden))
    return Architecture(decoder, 0, tower, projector)


def _digits(ours: float, published: float) -> str:
    """Ours with a digit more than theirs."""
    printed = f"{published:g}"
    return f"{ours:.{len(printed.partition('.')[2]) + 1}f}"


def conventions_table() -> str:
    """What each convention counts and leaves out, as Markdown."""
    data = yaml.safe_load(DATA.read_text(encoding="utf-8"))
    groups = data["groups"]
    lines = ["| convention | a layer of n tokens | over the layers | left out | used by |", "|---|---|---|---|---|"]
    for name, fields in data["conventions"].items():
        convention = Convention(**fields)
        users = ", ".join(re.split(r", | \(", g["paper"])[0] for g in groups if g["convention"] == name)
        over = "mean" if convention.mean else "sum"
        lines.append(f"| `{name}` | {convention.formula} | {over} | {', '.join(convention.left_out)} | {users} |")
    return "\n".join(lines)


def figures_table(found: list[Row]) -> str:
    """The figures, a table for each paper, with how many agree, as Markdown."""
    known = [row for row in found if row.off is not None]
    near = [row for row in known if abs(row.off or 0) <= TOLERANCE]
    off, open_ = len(known) - len(near), len(found) - len(known)
    lines = [
        f"{len(found)} figures. Ours is within {TOLERANCE:.0%} of {len(near)}; {off} differ by more, and {open_} have "
        "no published schedule to compute from."
    ]
    for paper in dict.fromkeys(row.paper for row in found):
        lines += [
            "",
            f"**{paper}**",
            "",
            "| where | model | of what | published | ours | unit | difference | convention | what to know |",
            "|---|---|---|---|---|---|---|---|---|",
            *(str(row) for row in found if row.paper == paper),
        ]
    return "\n".join(lines)


def main() -> int:
    """Print the figures table and write all tables into the documents.

    Returns:
        1 where a row is off and does not say why.
    """
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    found = list(rows())
    for name, text in documents(found).items():
        (DOCS / name).write_text(text, encoding="utf-8")
    print(figures_table(found))
    silent = [row for row in found if (row.off is None or abs(row.off) > TOLERANCE) and not row.why]
    for row in silent:
        print(f"error: {row} is off and has no `why` in {DATA.name}", file=sys.stderr)
    return 1 if silent else 0


def documents(found: list[Row]) -> dict[str, str]:
    """The documents with their tables as they are now, those that were measured as they lie in results/."""
    tables = {"conventions": conventions_table(), "published": figures_table(found), **measured_tables()}
    return {document: filled(document, tables) for document in DOCUMENTS}


if __name__ == "__main__":
    sys.exit(main())
