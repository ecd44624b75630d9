"""What the decoder alone reaches of the promised speed-up: measured shapes without the vision tower and the choice.

    python -m experiments.cost.decoder_alone

The tower takes as long with a method as without, and its narrow layers run at another rate, so that FLOPs of the whole
promise what no method can hold. Reads experiments/cost/results/shapes-cpu.json, measures nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from btp.measure import flops
from btp.measure.architecture import architecture
from experiments.cost.arms import composed
from experiments.cost.document import RESULTS
from experiments.cost.outline import outline
from experiments.cost.shape_table import measured_cells
from experiments.cost.shapes import words_of

HEADS = ("shape", "pruner", "tower, of the pruned prefill", "tower, GFLOP/s", "decoder unpruned", "pruned", "reached")


def main() -> None:
    """Print the table: rates in GFLOP/s, and the pruned decoder's over the unpruned one's."""
    found = json.loads((RESULTS / "shapes-cpu.json").read_text(encoding="utf-8"))
    print(f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}")
    for cell in measured_cells(found):
        if not cuts_tower(cell["pruner"]):
            print(f"| {' | '.join(line(cell, tower_flops(cell['model'], cell['words'])))} |")


@cache
def tower_flops(model: str, words: int) -> int:
    """Operations of a shape's vision tower and projector for one prompt."""
    found = outline(composed(*words_of(model), "pruner=none")["model"], words)
    return flops.vision(architecture(found.host.config), found.segments)


@cache
def cuts_tower(pruner: str) -> bool:
    """Whether a method has stages among the tower's layers, which then has fewer operations."""
    stages = composed(f"pruner={pruner}")["pruner"]["schedule"] or ()
    return any(stage["site"].startswith(("vision.mlp", "vision.layer")) for stage in stages)


def line(cell: Mapping[str, Any], tower: int) -> tuple[str, ...]:
    """One row of the table."""
    rates, towers = [], []
    for side in (cell["unpruned"], cell["costs"]):
        whole, inside = side["prefill_ms"]["median"], side["vision_ms"]["median"]
        spent = whole * (1 - side.get("selection_share", 0.0)) - inside
        rates.append((side["flops_prefill_measured"] - tower) / spent / 1e6)
        towers.append((inside / whole, tower / inside / 1e6))
    shape = f"{cell['model']}, {'bfloat16' if 'bfloat16' in cell['hardware'] else 'float32'}"
    return (
        shape,
        cell["pruner"],
        f"{towers[1][0]:.0%}",
        f"{towers[0][1]:.0f}",
        *(f"{rate:.0f}" for rate in rates),
        f"{rates[1] / rates[0]:.2f}",
    )


if __name__ == "__main__":
    main()
