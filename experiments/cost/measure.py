"""Measures every method beside the unpruned model, in alternation, and writes JSON, CSV and Markdown.

    python -m experiments.cost.measure --model pocket --out experiments/cost/results/pocket-cpu

Noise as pictures, equal prompts, random weights where the model's yaml gives no others: cost needs no answers. What an
earlier start of the same command measured on this machine is not measured again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from btp.models.loading.load import Loaded, find_checkpoint, load
from btp.results.atomic import write_json
from btp.results.status import UNPRUNED
from btp.runner.arms import Arm
from btp.runner.evaluation.cost import Costs, hardware_line, profile, synthetic_inputs
from btp.schedules.meet import pictures_of
from experiments.cost.arms import composed, make_arm, named
from experiments.cost.tables import csv_text, markdown

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def main() -> int:
    """Measure what is asked for, print the tables and write them after every method."""
    parser = arguments()
    args = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if args.clock == "processor" and device.type != "cpu":
        parser.error("--clock is processor, but a GPU's time does not pass on the processor. Leave it at wall.")
    json_file = args.out.with_name(args.out.name + ".json")
    json_file.parent.mkdir(parents=True, exist_ok=True)
    found = (
        json.loads(json_file.read_text(encoding="utf-8")) if json_file.exists() and not args.again else {"cells": {}}
    )
    found["command"] = shlex.join(["python", "-m", "experiments.cost.measure", *sys.argv[1:]])
    for model in args.model:
        for cell in cells(args, model, device, found["cells"]):
            found["cells"][cell.pop("key")] = cell
            write_json(json_file, found)
            args.out.with_name(args.out.name + ".csv").write_text(csv_text(found["cells"].values()), encoding="utf-8")
            args.out.with_name(args.out.name + ".md").write_text(markdown(found), encoding="utf-8")
    print(markdown(found))
    return 0


def cells(
    args: argparse.Namespace, model: str, device: torch.device, known: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Costs of each method at each batch and budget on one model, as they are measured.

    Args:
        known: what was measured before, by key.
    """
    pruners = named(args.pruner)
    settings: dict[str, Any] = composed(f"model={model}", f"pruner={pruners[0]}", *args.override)["model"]
    folder = find_checkpoint(settings) if settings["path"] else None
    settings = settings | ({} if folder else {"weights": "random"})
    if device.type == "cpu" and args.dtype is None:
        args.dtype = "float32"
    settings["dtype"] = args.dtype or settings["dtype"]
    where = hardware_line(device, settings["dtype"]) + (", processor time" if args.clock == "processor" else "")
    loaded: Loaded | None = None
    for batch in args.batch:
        inputs = None
        for share in args.share:
            for pruner in pruners:
                rounds = f"{args.words} words, {args.output} output tokens, {args.repeats} rounds"
                key = ", ".join([model, pruner, f"share {share:g}", f"batch {batch}", rounds, where, *args.override])
                if key in known:
                    continue
                if loaded is None:
                    loaded = load(settings, folder, device)
                if inputs is None:
                    inputs = synthetic_inputs(loaded, batch, settings["example"], args.words)
                print(f"{model}, batch {batch}, share {share:g}: {pruner}", file=sys.stderr, flush=True)
                total = int(loaded.host.visual_mask(inputs)[0].sum())
                cell = {"key": key, "model": model, "pruner": pruner, "share": share, "batch": batch, "visual": total}
                cell |= {"words": args.words, "output": args.output, "repeats": args.repeats, "hardware": where}
                try:
                    override = [f"model={model}", f"pruner={pruner}", f"budget.share={share}", *args.override]
                    arm = make_arm(composed(*override), loaded.host, total, pictures_of(inputs))
                except ValueError as error:
                    yield cell | {"refused": str(error).splitlines()[0]}
                    continue
                yield cell | measured(loaded, arm, inputs, args)


def measured(loaded: Loaded, arm: Arm, inputs: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """One method beside the unpruned model: `costs` and `unpruned`, as a run's cost.json has them."""
    once = Arm(arm.name, "method", arm.method, arm.schedule)  # not a control, so nothing comes from a store
    rounds = {"repeats": args.repeats, "warmup": args.warmup, "output_tokens": args.output}
    found = profile(loaded, [once], inputs, Costs(Path(), "", False), **rounds, now=CLOCKS[args.clock])
    return {"schedule": arm.schedule.to_config(), "costs": found[arm.name], UNPRUNED: found[UNPRUNED]}


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", nargs="+", default=["pocket"], help="names of conf/model")
    parser.add_argument("--pruner", nargs="+", default=["all"], help="names of conf/pruner")
    parser.add_argument("--share", type=float, nargs="+", default=[0.22], help="budgets, layer-averaged")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--words", type=int, default=64, help="text tokens of a prompt")
    parser.add_argument("--output", type=int, default=20, help="tokens to generate, at least 2")
    parser.add_argument("--repeats", type=int, default=10, help="timed rounds a side")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--device", help="cuda or cpu; the GPU where there is one")
    parser.add_argument("--dtype", help="of the weights; the model's own on a GPU, float32 on a CPU")
    parser.add_argument("--clock", choices=[*CLOCKS], default="wall", help="processor: on a CPU that others use too")
    parser.add_argument("--override", nargs="*", default=[], help="further words of run.py, such as model.path=...")
    parser.add_argument("--again", action="store_true", help="measure what is known once more")
    parser.add_argument("--out", type=Path, default=Path("outputs/cost"), help="without an ending")
    return parser


if __name__ == "__main__":
    sys.exit(main())
