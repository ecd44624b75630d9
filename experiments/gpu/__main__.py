"""Everything that waits for a GPU, in one start: `python -m experiments.gpu`.

Writes one JSON and one Markdown file after every case, to be sent back. What an earlier start found is not tried again,
so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from btp.results.atomic import write_json, write_text
from experiments.gpu import choices, costs, oracle, picks, quantized, smoke, spread
from experiments.gpu.document import counts, kind, markdown
from experiments.gpu.machine import machine
from experiments.gpu.setting import Cell, LeftOut, Setting

STEPS: dict[str, Callable[..., Iterator[Cell]]] = {
    "oracle": oracle.cells,
    "picks": picks.cells,
    "choices": choices.cells,
    "smoke": smoke.cells,
    "spread": spread.cells,
    "quantized": quantized.cells,
    "costs": costs.cells,
}


def main() -> int:
    """Run the steps that are not done; 1 where something failed or did not hold, 0 otherwise."""
    parser = arguments()
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, but torch sees no GPU here. --device cpu --tiny tries the steps without one.")
    if device.type == "cpu" and not args.tiny:
        parser.error("--device is cpu, where models of 7B take hours. Add --tiny.")
    setting = Setting(device, args.tiny, args.out.resolve())
    found = _known(args.out / "gpu.json") if not args.again else {}
    found |= {"command": shlex.join(["python", "-m", "experiments.gpu", *sys.argv[1:]]), "machine": machine(device)}
    begun, before = time.monotonic(), found.setdefault("seconds", 0.0)
    for step in args.step:
        known = found.setdefault("steps", {}).setdefault(step, {})
        done = {name for name, cell in known.items() if "left_out" not in cell}
        made = STEPS[step](setting, done) if step == "costs" else STEPS[step](setting)
        for name, measure in made:
            if name in done:
                continue
            late = time.monotonic() - begun > 60 * args.minutes
            known[name] = {"left_out": f"{args.minutes:g} minutes were over; start again"} if late else tried(measure)
            found["seconds"] = before + time.monotonic() - begun
            print(f"{step}: {name}: {kind(known[name])}", file=sys.stderr, flush=True)
            write(args.out, found)
            if "failed" in known[name] and not usable(device):
                os.execv(sys.executable, [sys.executable, "-m", "experiments.gpu", *_resumed(sys.argv[1:])])
    print(f"{args.out / 'gpu.md'} and {args.out / 'gpu.json'} hold what was found.")
    outcomes = [counts(cells) for cells in found["steps"].values()]
    return int(any(each["failed"] or each["did not hold"] for each in outcomes))


def tried(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a case came to, whatever it ends in."""
    try:
        return measure()
    except LeftOut as why:
        return {"left_out": str(why)}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}


def usable(device: torch.device) -> bool:
    """Whether this process can go on with its device: an error inside a kernel is the end of both."""
    try:
        torch.zeros(1, device=device).sum().item()
    except RuntimeError:
        return False
    return True


def write(folder: Path, found: dict[str, Any]) -> None:
    """Both files."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "gpu.json", found)
    write_text(folder / "gpu.md", markdown(found))


def _known(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _resumed(words: list[str]) -> list[str]:
    return [word for word in words if word != "--again"]


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu")
    parser.add_argument("--tiny", action="store_true", help="the smallest case of each step, on the embedded models")
    parser.add_argument("--step", nargs="+", choices=STEPS, default=list(STEPS), help="some of the steps")
    parser.add_argument("--minutes", type=float, default=12, help="behind which no further case is begun")
    parser.add_argument("--again", action="store_true", help="try what is known once more")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu"), help="a folder")
    return parser


if __name__ == "__main__":
    sys.exit(main())
