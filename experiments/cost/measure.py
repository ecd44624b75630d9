r"""Measures every method beside the unpruned model, in alternation, and writes JSON, CSV and Markdown.

    python -m experiments.cost.measure --model pocket --out experiments/cost/results/pocket-cpu

    python -m experiments.cost.measure --model llava15_cpu --schedule paper --clock processor \
        --out experiments/cost/results/shapes-cpu

The second measures a real architecture that shapes.yaml makes narrower, each method at its published schedule. What
goes to results/ is brought into docs/cost_measured.md. Noise as pictures, equal prompts, random weights where the
model's yaml gives no others: cost needs no answers. What an earlier start of the same command measured on this machine
is not measured again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
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
from experiments.cost.document import RESULTS, write_measured
from experiments.cost.shape_table import shapes_table
from experiments.cost.shapes import published_words, shapes, words_of
from experiments.cost.tables import csv_text, markdown
from experiments.cost.turns import Turns

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
            found["cells"][cell.pop("key")] = cell | {"command": found["command"]}
            write_json(json_file, found)
            args.out.with_name(args.out.name + ".csv").write_text(csv_text(found["cells"].values()), encoding="utf-8")
            args.out.with_name(args.out.name + ".md").write_text(text_of(found), encoding="utf-8")
    print(text_of(found))
    if args.out.parent.resolve() == RESULTS:
        write_measured()
    return 0


def text_of(found: Mapping[str, Any]) -> str:
    """The tables as Markdown: one for each shape where all are shapes, else what was counted and what was timed."""
    known = shapes()
    whole = all(cell["model"] in known for cell in found["cells"].values())
    return shapes_table(found) if whole else markdown(found)


def cells(
    args: argparse.Namespace, model: str, device: torch.device, known: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Costs of each method at each batch and budget on one model, as they are measured.

    Args:
        known: what was measured before, by key.
    """
    pruners = named(args.pruner)
    words = [*words_of(model), *args.override]
    settings: dict[str, Any] = composed(*words, f"pruner={pruners[0]}")["model"]
    folder = find_checkpoint(settings) if settings["path"] and model not in shapes() else None
    settings = settings | ({} if folder else {"weights": "random"})
    for dtype in args.dtype or ["float32" if device.type == "cpu" else settings["dtype"]]:
        where = hardware_line(device, dtype) + (", processor time" if args.clock == "processor" else "")
        bench: Bench | None = None
        for batch in args.batch:
            asked = []
            for share, pruner in ((share, pruner) for share in args.share for pruner in pruners):
                cell = {"model": model, "pruner": pruner, "share": share, "batch": batch, "words": args.words}
                cell |= {"output": args.output, "repeats": args.repeats, "schedule_of": args.schedule}
                cell |= {"hardware": where, "key": key_of(cell, where, args.override)}
                if cell["key"] not in known:
                    asked.append(cell)
            if asked:
                bench = bench or Bench(load({**settings, "dtype": dtype}, folder, device), settings["example"], args)
                yield from bench.cells(asked, words)


def key_of(cell: Mapping[str, Any], where: str, overrides: Sequence[str]) -> str:
    """Names a measurement by all that it depends on."""
    rounds = f"{cell['words']} words, {cell['output']} output tokens, {cell['repeats']} rounds"
    schedule = f"share {cell['share']:g}" if cell["schedule_of"] == "budget" else f"schedule {cell['schedule_of']}"
    return ", ".join([cell["model"], cell["pruner"], schedule, f"batch {cell['batch']}", rounds, where, *overrides])


class Bench:
    """A model in memory, on which cells are measured."""

    def __init__(self, loaded: Loaded, example: Mapping[str, int], args: argparse.Namespace) -> None:
        self.loaded, self.example, self.args = loaded, example, args

    def cells(self, asked: Sequence[dict[str, Any]], words: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Cells of one batch size: what was asked with what was found, or why it was refused."""
        inputs = synthetic_inputs(self.loaded, asked[0]["batch"], self.example, self.args.words)
        total = int(self.loaded.host.visual_mask(inputs)[0].sum())
        on_cpu = self.loaded.host.device.type == "cpu"
        turns = Turns(self.loaded, inputs, self.args.output, CLOCKS[self.args.clock]) if on_cpu else None
        ready: list[tuple[dict[str, Any], Arm]] = []
        for cell in asked:
            cell["visual"] = total
            print(f"{cell['model']}, batch {cell['batch']}: {cell['pruner']}", file=sys.stderr, flush=True)
            try:
                ready.append((cell, self._arm(cell, words, total, inputs)))
            except ValueError as error:
                yield cell | {"refused": str(error).splitlines()[0]}
            if len(ready) == (2 if turns else 1):
                yield from self._measured(ready, turns, inputs)
                ready = []
        yield from self._measured(ready, turns, inputs)

    def _arm(self, cell: dict[str, Any], words: Sequence[str], total: int, inputs: dict[str, Any]) -> Arm:
        words = [*words, f"pruner={cell['pruner']}"]
        config = composed(*words)
        published = published_words(config["pruner"], config["model"]["name"]) if cell["schedule_of"] == "paper" else []
        cell["published_for"] = published[1].removeprefix("schedule.model=") if published else None
        config = composed(*words, *(published or [f"budget.share={cell['share']}"]))
        return make_arm(config, self.loaded.host, total, pictures_of(inputs))

    def _measured(
        self, ready: Sequence[tuple[dict[str, Any], Arm]], turns: Turns | None, inputs: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        """Methods beside the unpruned model: `costs` and `unpruned`, as a run's cost.json has them."""
        args = self.args
        if turns is not None:
            found = turns.measure([arm for _, arm in ready], args.repeats, args.warmup) if ready else iter(())
        else:
            found = (self._waited(arm, inputs) for _, arm in ready)
        for (cell, arm), costs in zip(ready, found, strict=True):
            yield cell | {"schedule": arm.schedule.to_config()} | costs

    def _waited(self, arm: Arm, inputs: dict[str, Any]) -> dict[str, Any]:
        """On a GPU, which is waited for around whatever is timed."""
        once = Arm(arm.name, "method", arm.method, arm.schedule)  # not a control, so nothing comes from a store
        rounds = {"repeats": self.args.repeats, "warmup": self.args.warmup, "output_tokens": self.args.output}
        found = profile(self.loaded, [once], inputs, Costs(Path(), "", False), **rounds, now=CLOCKS[self.args.clock])
        return {"costs": found[arm.name], UNPRUNED: found[UNPRUNED]}


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", nargs="+", default=["pocket"], help="names of conf/model or of shapes.yaml")
    parser.add_argument("--pruner", nargs="+", default=["all"], help="names of conf/pruner")
    parser.add_argument("--share", type=float, nargs="+", default=[0.22], help="budgets, layer-averaged")
    parser.add_argument("--schedule", choices=["budget", "paper"], default="budget", help="paper: as published")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--words", type=int, default=64, help="text tokens of a prompt")
    parser.add_argument("--output", type=int, default=20, help="tokens to generate, at least 2")
    parser.add_argument("--repeats", type=int, default=10, help="timed rounds a side")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--device", help="cuda or cpu; the GPU where there is one")
    parser.add_argument("--dtype", nargs="+", help="of the weights; the model's own on a GPU, float32 on a CPU")
    parser.add_argument("--clock", choices=[*CLOCKS], default="wall", help="processor: on a CPU that others use too")
    parser.add_argument("--override", nargs="*", default=[], help="further words of run.py, such as model.path=...")
    parser.add_argument("--again", action="store_true", help="measure what is known once more")
    parser.add_argument("--out", type=Path, default=Path("outputs/cost"), help="without an ending")
    return parser


if __name__ == "__main__":
    sys.exit(main())
