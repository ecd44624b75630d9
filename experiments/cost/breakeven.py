"""When does pruning pay: time saved in each phase, and the output, prompt and batch from which on it is worth it.

    python -m experiments.cost.breakeven --model llava15 --pruner fastv --prompt 64 --output 20 --batch 1

From the roofline of a device, or with --costs from measured latencies (a cost.json of run.py, or the JSON of
experiments.cost.measure).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from btp.measure.architecture import Architecture, architecture
from btp.measure.roofline import Device, Times, roofline
from btp.measure.segments import Segments
from btp.results.status import UNPRUNED
from btp.runner.arms import Arm
from btp.schedules.published import PAPER
from experiments.cost.arms import composed, make_arm, planned
from experiments.cost.outline import Outline, outline
from experiments.cost.thresholds import (
    measured_times,
    outputs_that_pay,
    selection_allowed,
    speedup,
    turning_point,
)

DEVICES = yaml.safe_load(Path(__file__).with_name("devices.yaml").read_text(encoding="utf-8"))
LONGEST, LARGEST = 1 << 20, 1 << 12  # text tokens and prompts that are looked at


@dataclass(frozen=True)
class Case:
    """A method on a model and a device, at any prompt, output and batch.

    Attributes:
        device: it runs on.
        sizes, segments: of the model, and of its vision tower for one prompt.
        visual: visual tokens of the unpruned prompt.
        kept: those that the method leaves to each layer.
        selection: seconds it takes to choose them.
        itemsize: bytes of a number.
    """

    device: Device
    sizes: Architecture
    segments: Segments
    visual: int
    kept: Sequence[float]
    selection: float
    itemsize: int

    def times(self, text: int, output: int, batch: int) -> tuple[Times, Times]:
        """Unpruned and pruned."""
        common = {"batch": batch, "output": output, "segments": self.segments, "itemsize": self.itemsize}
        full = roofline(self.device, self.sizes, [self.visual] * len(self.kept), text, **common)
        return full, roofline(self.device, self.sizes, self.kept, text, **common, selection=self.selection)

    def faster(self, text: int, output: int, batch: int) -> float:
        """Speed-up of a whole answer."""
        return speedup(*self.times(text, output, batch), output)


def report(full: Times, pruned: Times, output: int, worth: float) -> list[str]:
    """What one pair of times says: each phase, the whole answer, and the numbers of output tokens that pay."""
    lines = ["| phase | unpruned, ms | pruned, ms | saved, ms |", "|---|---|---|---|"]
    shown = {"vision": "vision tower", "selection": "selection", "prefill": "prefill", "per_token": "an output token"}
    for name, saved in full.less(pruned).items():
        lines.append(_row(shown[name], getattr(full, name), getattr(pruned, name), saved))
    lines.append(_row("first token", full.first, pruned.first, full.first - pruned.first))
    whole = full.until(output), pruned.until(output)
    lines.append(_row(f"{output} output tokens", *whole, whole[0] - whole[1]))
    lines += [
        "",
        f"Speed-up: first token {full.first / pruned.first:.2f}, last token {speedup(full, pruned, output):.2f}.",
        f"Faster at all: {outputs_that_pay(full, pruned)}. By {worth:.2f} or more: "
        f"{outputs_that_pay(full, pruned, worth)}.",
        f"Selection may take {1e3 * selection_allowed(full, pruned, output):.3g} ms before nothing is won.",
    ]
    return lines


def limits(case: Case, text: int, output: int, batch: int, worth: float) -> list[str]:
    """From which prompt and batch on an answer is faster by `worth`, the rest as it is."""
    at, pays = turning_point(lambda n: case.faster(n, output, batch) >= worth, 0, LONGEST)
    lines = [f"Text tokens of the prompt: {_ends(at, pays, f'{LONGEST} of them')}."]
    at, pays = turning_point(lambda n: case.faster(text, output, n) >= worth, 1, LARGEST)
    return [*lines, f"Prompts in a batch: {_ends(at, pays, f'{LARGEST} of them')}."]


def _ends(at: int | None, pays: bool, end: str) -> str:
    if at is None:
        return f"any number pays, up to {end}" if pays else f"no number pays, up to {end}"
    return f"pays from {at} on" if pays else f"pays up to {at - 1}"


def _row(name: str, *seconds: float) -> str:
    return f"| {name} | {' | '.join(f'{1e3 * s:.3f}' for s in seconds)} |"


def chosen_device(args: argparse.Namespace) -> tuple[Device, str]:
    """The device that is asked for, and what to print about it.

    Raises:
        ValueError: it is not in devices.yaml, and its rates are not given.
    """
    known = DEVICES.get(args.device)
    if known is None and (args.flops is None or args.bandwidth is None):
        raise ValueError(
            f"--device is {args.device}, which devices.yaml does not have ({', '.join(DEVICES)}). Choose one of them, "
            "or give --flops and --bandwidth."
        )
    known = known or {"name": args.device, "source": "the command line"}
    device = Device(args.flops or known["flops"], args.bandwidth or known["bandwidth"], args.reached)
    rates = f"{device.flops / 1e12:g} TFLOP/s, {device.bandwidth / 1e9:g} GB/s"
    return device, f"{known['name']}: {rates} ({known['source']}), {device.reached:.0%} of it reached"


def read_costs(path: Path, pruner: str, args: argparse.Namespace) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Costs of the unpruned model and of the pruner, from a cost.json or from what experiments.cost.measure wrote.

    Raises:
        ValueError: the file does not hold this pruner.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    if "cells" not in found:
        if pruner not in found:
            raise ValueError(
                f"{path} holds no costs of {pruner}, but of {', '.join(k for k in found if k != 'hardware')}."
            )
        return found[UNPRUNED], found[pruner]
    want = {"model": args.model, "pruner": pruner, "batch": args.batch}
    for cell in found["cells"].values():
        if "costs" in cell and want.items() <= cell.items():
            return cell[UNPRUNED], cell["costs"]
    there = sorted({f"{c['model']} {c['pruner']} batch {c['batch']}" for c in found["cells"].values() if "costs" in c})
    raise ValueError(f"{path} holds no costs of {args.model} {pruner} batch {args.batch}, but of: {', '.join(there)}.")


def theoretical(args: argparse.Namespace) -> list[str]:
    """The report from a device's roofline."""
    device, line = chosen_device(args)
    words = [f"model={args.model}", f"pruner={args.pruner}", *args.override]
    words += ["schedule=paper"] if args.schedule == PAPER else [f"budget.share={args.share}"]
    config = composed(*words)
    seen: Outline = outline(config["model"], args.prompt)
    arm: Arm = make_arm(config, seen.host, seen.visual)
    sizes = architecture(seen.host.config, strict=False)
    kept = planned(arm.schedule, seen.visual, seen.host.num_layers)
    case = Case(device, sizes, seen.segments, seen.visual, kept, args.selection_ms / 1e3, args.bytes)
    full, pruned = case.times(args.prompt, args.output, args.batch)
    stages = ", ".join(f"{stage.site} keeps {stage.count(seen.visual)}" for stage in arm.schedule)
    tower = "" if sizes.vision else " The vision tower counts nothing: its work does not follow from this config."
    return [
        f"{args.model}, {args.pruner}: {seen.visual} visual tokens, {sum(kept) / len(kept):.1f} on average ({stages}); "
        f"{args.prompt} text tokens, {args.output} output tokens, batch {args.batch}.",
        f"{line}.",
        "",
        *report(full, pruned, args.output, args.worth),
        *limits(case, args.prompt, args.output, args.batch, args.worth),
        "",
        "Assumed: every layer takes the longer of computing and moving its weights, keys and values; weights are read "
        "once a forward; activations, norms, launches, sampling and the loading of pictures cost nothing; what leaves "
        f"in the vision tower saves nothing there; selection takes {args.selection_ms:g} ms (--selection-ms).{tower}",
    ]


def from_measured(args: argparse.Namespace) -> list[str]:
    """The report from measured latencies."""
    plain, costs = read_costs(args.costs, args.pruner, args)
    full, pruned = measured_times(plain), measured_times(costs)
    return [
        f"{args.model}, {args.pruner}, measured ({args.costs}): {plain['tokens_avg']:.1f} visual tokens, "
        f"{costs['tokens_avg']:.1f} on average; batch {costs['batch']}.",
        "",
        *report(full, pruned, args.output, args.worth),
        "",
        "Assumed: medians; every output token takes as long as the mean of those measured. Another prompt or batch "
        "needs a measurement of its own.",
    ]


def main() -> int:
    """Print the report.

    Returns:
        1 with a message where what was asked for does not exist.
    """
    args = arguments().parse_args()
    try:
        print("\n".join(from_measured(args) if args.costs else theoretical(args)))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="llava15", help="name of conf/model")
    parser.add_argument("--pruner", default="fastv", help="name of conf/pruner")
    parser.add_argument("--share", type=float, default=0.22, help="budget, layer-averaged")
    parser.add_argument("--schedule", choices=["auto", PAPER], default="auto", help="paper: as published, no budget")
    parser.add_argument("--prompt", type=int, default=64, help="text tokens of a prompt")
    parser.add_argument("--output", type=int, default=20, help="tokens to generate")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--worth", type=float, default=1.05, help="speed-up of a whole answer that is worth it")
    parser.add_argument("--device", default="a100", help=f"one of {', '.join(DEVICES)}, or a name of your own")
    parser.add_argument("--flops", type=float, help="peak operations per second, in place of the device's")
    parser.add_argument("--bandwidth", type=float, help="peak bytes per second, in place of the device's")
    parser.add_argument("--reached", type=float, default=1.0, help="share of both peaks that kernels reach")
    parser.add_argument("--bytes", type=int, default=2, help="of a number, weights and cache alike")
    parser.add_argument("--selection-ms", type=float, default=0.0, help="time of choosing tokens, of a whole batch")
    parser.add_argument("--costs", type=Path, help="measured latencies in place of a roofline")
    parser.add_argument("--override", nargs="*", default=[], help="further words of run.py")
    return parser


if __name__ == "__main__":
    sys.exit(main())
