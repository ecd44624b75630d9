"""What was measured of real shapes: a table for the document, and the lines that a run's report takes from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from experiments.cost.shapes import shapes
from experiments.cost.tables import promised, reached

Cell = Mapping[str, Any]
HEADS = (
    "pruner",
    "published for",
    "tokens_avg",
    "prefill, s (p10 to p90)",
    "prefill speed-up",
    "promised by FLOPs",
    "reached of promised",
    "selection share",
    "a step, of the unpruned one's",
    "peak of a prefill, of the unpruned one's",
)


def measured_cells(found: Mapping[str, Any]) -> list[Cell]:
    """Those of shapes that were measured and not refused, in the order of shapes.yaml."""
    order = list(shapes())
    cells = [cell for cell in found["cells"].values() if cell["model"] in order and "costs" in cell]
    return sorted(cells, key=lambda cell: order.index(cell["model"]))  # stable: methods as they were measured


def shapes_table(found: Mapping[str, Any]) -> str:
    """Markdown: a table for each shape and precision, with the unpruned figures above it, and who did not apply."""
    lines = []
    for (model, hardware), cells in _groups(measured_cells(found)).items():
        commands = dict.fromkeys(f"`{cell['command']}`" for cell in cells)
        lines += ["", _head(model, hardware, cells), "", *commands, "", _row(HEADS), "|" + "---|" * len(HEADS)]
        lines += [_line(cell) for cell in cells]
        refused = [c for c in found["cells"].values() if (c["model"], c["hardware"]) == (model, hardware)]
        lines += [f"\n`{c['pruner']}` does not apply: {c['refused']}" for c in refused if "refused" in c]
    return "\n".join(lines).strip() + "\n"


def report_lines(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a run's report says of each method: the speed on the first shape and precision it was measured at."""
    out: dict[str, dict[str, Any]] = {}
    for cell in measured_cells(found):
        shape = shapes()[cell["model"]]
        out.setdefault(
            cell["pruner"],
            {
                "pruner": cell["pruner"],
                "shape": shape["said"],
                "visual": cell["visual"],
                "tokens_avg": round(cell["costs"]["tokens_avg"], 1),
                "speedup": round(reached(cell), 2),
                "promised": round(promised(cell), 2),
                "step": round(cell["costs"]["per_token_ratio"]["median"], 2),
                "rounds": cell["repeats"],
                "hardware": cell["hardware"],
                "command": cell["command"],
            },
        )
    return list(out.values())


def _groups(cells: Iterable[Cell]) -> dict[tuple[str, str], list[Cell]]:
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell["model"], cell["hardware"]), []).append(cell)
    return groups


def _head(model: str, hardware: str, cells: Sequence[Cell]) -> str:
    plain = [cell["unpruned"] for cell in cells]
    first = cells[0]
    rounds = " or ".join(str(n) for n in sorted({cell["repeats"] for cell in cells}))
    prefill, step, tower = (
        median(side[key]["median"] for side in plain) for key in ("prefill_ms", "per_token_ms", "vision_ms")
    )
    return (
        f"**{model}**, {shapes()[model]['said']}: {first['visual']} visual and {first['words']} text tokens, "
        f"{rounds} rounds. {hardware}. Unpruned: prefill {prefill / 1e3:.2f} s (vision tower {tower / 1e3:.2f} s), a "
        f"step {step:.0f} ms, {first['unpruned']['flops_prefill'] / 1e9:.0f} GFLOPs, peak of a prefill "
        f"{first['unpruned']['prefill_peak_mib']:.0f} MiB beyond the weights."
    )


def _line(cell: Cell) -> str:
    costs, step = cell["costs"], cell["costs"]["per_token_ratio"]["median"]
    middle, low, high = (costs["prefill_ms"][part] / 1e3 for part in ("median", "p10", "p90"))
    return _row(
        (
            cell["pruner"],
            cell["published_for"] or "none: budget 0.22",
            f"{costs['tokens_avg']:.1f}",
            f"{middle:.2f} ({low:.2f} to {high:.2f})",
            f"{reached(cell):.2f}",
            f"{promised(cell):.2f}",
            f"{reached(cell) / promised(cell):.2f}",
            f"{costs['selection_share']:.1%}",
            f"{step:.2f}",
            f"{costs['prefill_peak_mib'] / cell['unpruned']['prefill_peak_mib']:.2f}",
        )
    )


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
