"""Clips and pictures a second with and without pruning, in turns, in one process, on one thread of a CPU.

    python -m experiments.vision_speed.measure
    python -m experiments.vision_speed.measure --cell yolos_tiny/bavit/0.5 --rounds 5

Random weights of the published shapes and noise as input: cost needs no answers. Time is the processor's, so that what
else runs on the machine counts little.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from btp.models.loading.load import Loaded, load
from btp.results.atomic import write_json
from btp.results.status import UNPRUNED
from btp.runner.arms import Arm
from btp.runner.evaluation.cost import Costs, hardware_line, profile, synthetic_inputs
from btp.runner.evaluation.visual_totals import visual_count
from experiments.cost.arms import composed, make_arm

CELLS = (
    "videomae_base_k400/sta/0.7",
    "videomae_base_k400/random/0.5",
    "videomae_base_k400/tome_vit/0.7",
    "yolos_tiny/bavit/0.5",
    "yolos_tiny/random/0.5",
    "yolos_tiny/evit/0.7",
)
FRONT = [{"site": "vision.layer.0", "keep": "fit"}]  # of pruners without stages of their own
PROMISED, SELECTION = 0.85, 0.03  # at least of what operations promise; at most of the pruned forward


def main() -> int:
    """Measure every cell, print the table after each and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cell", nargs="+", default=list(CELLS), metavar="MODEL/PRUNER/SHARE")
    parser.add_argument("--with", nargs="+", default=[], dest="words", help="settings of each cell")
    parser.add_argument("--rounds", type=int, default=4, help="timed ones, of each side in turns")
    parser.add_argument("--warmup", type=int, default=1, help="untimed ones")
    parser.add_argument("--out", type=Path, default=Path("outputs/vision_speed"), help="without an ending")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    for cell in args.cell:
        model, pruner, share = cell.split("/")
        found.append(measured(model, pruner, float(share), args.rounds, args.warmup, args.words))
        text = table(found)
        print(text, flush=True)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out.with_suffix(".json"), {"cells": found})
        args.out.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    return 0


def measured(
    model: str, pruner: str, share: float, rounds: int, warmup: int, words: Sequence[str] = ()
) -> dict[str, Any]:
    """One method at one budget beside the unpruned model, as a run's cost.json has both."""
    config = composed(f"model={model}", f"pruner={pruner}", f"budget.share={share}", "model.weights=random", *words)
    settings = config["model"] | {"dtype": "float32"}
    device = torch.device("cpu")
    loaded = load(settings, None, device)
    inputs = synthetic_inputs(loaded, 1, settings["example"], 0)
    arm = _arm(config, loaded, visual_count(loaded.host, inputs))
    paced = {"repeats": rounds, "warmup": warmup, "output_tokens": 2}
    each = profile(loaded, [arm], inputs, Costs(Path(), "", False), **paced, now=time.process_time)
    about = {
        "model": model,
        "pruner": pruner,
        "share": share,
        "rounds": rounds,
        "words": list(words),
        "hardware": hardware_line(device, "float32"),
    }
    return about | {"schedule": arm.schedule.to_config(), "costs": each[arm.name], UNPRUNED: each[UNPRUNED]}


def _arm(config: dict[str, Any], loaded: Loaded, total: int) -> Arm:
    stages = config["pruner"]["schedule"] or FRONT
    arm = make_arm({**config, "pruner": {**config["pruner"], "schedule": stages}}, loaded.host, total)
    return Arm(arm.name, "method", arm.method, arm.schedule)  # not a control, so nothing comes from a store


def table(cells: list[dict[str, Any]]) -> str:
    """One row a cell."""
    head = ["model", "pruner", "budget", "GMACs", "unpruned", "a second, unpruned", "a second", "speed-up", "promised"]
    head += ["reached of promised", "selection"]
    lines = ["| " + " | ".join(head) + " |", "|:--|:--|" + "--:|" * (len(head) - 2)]
    for cell in cells:
        mine, whole = cell["costs"], cell[UNPRUNED]
        ups = [1 / mine["forward_ratio"]["median"], whole["flops_model"] / mine["flops_model"]]
        row = [cell["model"], " ".join([cell["pruner"], *cell["words"]]), f"{cell['share']:.0%}"]
        row += [f"{mine['gmacs']:.1f}", f"{whole['gmacs']:.1f}"]
        row += [f"{whole['per_second']:.3g}", f"{mine['per_second']:.3g}", *(f"{up:.2f}" for up in ups)]
        row += [_marked(ups[0] / ups[1] >= PROMISED, f"{ups[0] / ups[1]:.2f}")]
        row += [_marked(mine["selection_share"] <= SELECTION, f"{mine['selection_share']:.1%}")]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def _marked(met: bool, text: str) -> str:
    return text if met else f"**{text}**"


if __name__ == "__main__":
    sys.exit(main())
