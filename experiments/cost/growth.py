"""How the time and the memory of each method's choice grow with the picture, and draws it.

    OMP_NUM_THREADS=1 python -m experiments.cost.growth --out experiments/cost/results/growth-cpu

A small LLaVA (random weights, eight decoder layers) is shown one square picture of N patches. When the engine asks the
method at its first stage for N / 4 of them, the choice is made some times over on the processor's clock, once more
under torch's memory profiler, and the forward ends there: signals are the engine's and do not count. What an earlier
start of the same command measured on this machine is not measured again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from btp.core.pruner import Pruner, Tokens
from btp.core.schedule import Stage
from btp.core.selection import Selection
from btp.core.signals import Signals
from btp.core.wrapper import Around
from btp.engine.attach import attach
from btp.measure.hardware import peak_above_mib
from btp.models.loading.load import load
from btp.results.atomic import write_json
from btp.runner.evaluation.cost import hardware_line, synthetic_inputs
from btp.runner.evaluation.oracle_targets import aim_nowhere
from experiments.cost.arms import composed, make_arm, named, with_stages
from experiments.cost.document import DOCS, RESULTS, write_measured
from experiments.cost.growth_table import drawn, table

SIDES = (24, 34, 48, 68, 96)  # 576, 1156, 2304, 4624 and 9216 visual tokens
SHARE = 0.25
PATCH = 14
CPU = torch.device("cpu")
HALVES = {"tome": {"site": "vision.mlp.0", "keep": 0.5}}  # a block can merge no more


class _AskedError(Exception):
    """The choice was made; the rest of the forward is of no interest."""


class Weighed(Around):
    """Makes its first choice several times over, and stops there.

    Attributes:
        seconds: of each choice, in order.
        peak_mib: most memory that one held beyond what it was shown.
    """

    def __init__(self, pruner: Pruner, repeats: int) -> None:
        super().__init__(pruner)
        self.repeats, self.peak_mib = repeats, 0.0
        self.seconds: list[float] = []

    def select(self, tokens: Tokens, signals: Signals, stage: Stage) -> Selection:
        """Never returns.

        Raises:
            _AskedError: always.
        """
        self.peak_mib = peak_above_mib(lambda: self.pruner.select(tokens, signals, stage), CPU)  # warms up, too
        for _ in range(self.repeats):
            start = time.process_time()
            self.pruner.select(tokens, signals, stage)
            self.seconds.append(time.process_time() - start)
        raise _AskedError


def words_of(side: int) -> list[str]:
    """The model of pictures of side x side patches, as a run's command line would say it."""
    text = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 8, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 4, "vocab_size": 33000, "max_position_embeddings": 16384}
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision |= {"image_size": side * PATCH}
    words = [f"model.config.text_config.{key}={value}" for key, value in text.items()]
    words += [f"model.config.vision_config.{key}={value}" for key, value in vision.items()]
    return ["model=llava15", f"model.config.image_seq_length={side * side}", "model.weights=random", *words]


def weigh(loaded: Any, side: int, pruner: str, repeats: int) -> dict[str, Any]:
    """One method at one size.

    Raises:
        ValueError: the method does not apply to this model, or chooses nothing at its first stage.
    """
    config = composed(*words_of(side), f"pruner={pruner}")
    stages = with_stages(config["pruner"])["schedule"]
    if not stages or config["pruner"].get("parts"):
        raise ValueError(f"pruner {pruner!r} is made of others, which have rows of their own.")
    config["pruner"]["schedule"] = [stages[0] | HALVES.get(pruner, {"keep": SHARE})]
    arm = make_arm(config, loaded.host, side * side)
    method = arm.build()
    if method is None:
        raise ValueError(f"pruner {pruner!r} chooses nothing.")
    aim_nowhere(method, 1)
    weighed = Weighed(method, repeats)
    inputs = synthetic_inputs(loaded, 1, {"height": side * PATCH, "width": side * PATCH})
    try:
        with torch.inference_mode(), attach(loaded.host, weighed, arm.schedule):
            loaded.host(**inputs)
    except _AskedError:
        return {"seconds": weighed.seconds, "peak_mib": weighed.peak_mib}
    raise ValueError(f"pruner {pruner!r} is not asked at its first stage.")


def main() -> int:
    """Measure, print the table and draw; everything is written after each method."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pruner", nargs="+", default=["all"], help="names of conf/pruner")
    parser.add_argument("--side", type=int, nargs="+", default=SIDES, help="patches along a side of the picture")
    parser.add_argument("--repeats", type=int, default=3, help="timed choices at each size")
    parser.add_argument("--out", type=Path, default=Path("outputs/growth"), help="without an ending")
    args = parser.parse_args()
    file = args.out.with_name(args.out.name + ".json")
    file.parent.mkdir(parents=True, exist_ok=True)
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"methods": {}}
    found["command"] = shlex.join(["python", "-m", "experiments.cost.growth", *sys.argv[1:]])
    found["hardware"] = f"{hardware_line(CPU, 'float32')}, processor time"
    torch.manual_seed(0)
    for side in sorted(args.side):
        for _ in measure(found["methods"], side, named(args.pruner), args.repeats):
            write_json(file, found)
    write_json(file, found)  # the command, where nothing was missing
    print(table(found))
    args.out.with_name(args.out.name + ".md").write_text(table(found), encoding="utf-8")
    if args.out.parent.resolve() == RESULTS:
        drawn(found, DOCS / "images" / "cost_growth.png")
        write_measured()
    else:
        drawn(found, args.out.with_name(args.out.name + ".png"))
    return 0


def measure(methods: dict[str, Any], side: int, pruners: Sequence[str], repeats: int) -> Iterator[str]:
    """What is missing at one size, into `methods`: pruner -> tokens -> figures, or why there are none; by name."""
    missing = [name for name in pruners if str(side * side) not in methods.get(name, {})]
    missing = [name for name in missing if "refused" not in methods.get(name, {})]
    if not missing:
        return
    settings = composed(*words_of(side), "pruner=none")["model"]
    loaded = load({**settings, "dtype": "float32"}, None, CPU)
    for name in missing:
        print(f"{side * side} tokens: {name}", file=sys.stderr, flush=True)
        try:
            methods.setdefault(name, {})[str(side * side)] = weigh(loaded, side, name, repeats)
        except ValueError as error:
            methods[name] = {"refused": str(error).splitlines()[0]}
        yield name


if __name__ == "__main__":
    sys.exit(main())
