"""Times the answers to a task: the runner's batches against the loop that one writes first, with one model.

The loop takes sample after sample through processor and generate, with the same pruner attached. README.md beside this
file says how to run it and what it printed.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from btp.engine.attach import attach
from btp.models.chat_template import chat_inputs
from btp.models.loading.load import Loaded, find_checkpoint, load
from btp.results.shipped import CONF
from btp.runner.arms import Arm, build_arms
from btp.runner.devices import Machine
from btp.runner.evaluation.cost import hardware_line
from btp.runner.evaluation.data import Collate, by_length, turns_of
from btp.runner.evaluation.evaluate import answer
from btp.schedules.meet import Facts
from btp.schedules.plan import Sources
from btp.tasks.sample import Sample, Task


@dataclass
class Subject:
    """What every way of answering gets.

    Attributes:
        arm: the pruner and its solved schedule.
    """

    loaded: Loaded
    arm: Arm
    task: Task
    samples: list[Sample]
    config: dict[str, Any]


def subject(words: Sequence[str], count: int) -> Subject:
    """Compose as run.py does, and load.

    Args:
        words: of run.py's command line.
        count: samples.

    Raises:
        ValueError: the pruner's stages come from a calibration, which this does without.
    """
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("config", overrides=list(words)), resolve=True)
    config["command"] = " ".join(words)
    torch.manual_seed(config["seed"])
    device = Machine(config["trainer"], Path(".")).device
    loaded = load(config["model"], find_checkpoint(config["model"]), device)
    task = instantiate(config["task"]["dataset"])
    samples = [task[i] for i in range(count)]
    inputs = Collate(loaded.processor)(samples[:1]).inputs
    total = int(loaded.host.visual_mask(inputs).sum())

    def calibrated() -> Any:
        raise ValueError("This pruner's stages come from a calibration. Add schedule=uniform.")

    arms, _ = build_arms(config, Facts(loaded.host.num_layers, total), Sources(calibrated, lambda pruner: pruner))
    return Subject(loaded, arms[1], task, samples, config)


def plain(of: Subject) -> dict[str, str]:
    """Answers by sample: one at a time, in the task's order."""
    model, processor, found = of.loaded.host.model, of.loaded.processor, {}
    with torch.inference_mode(), attach(of.loaded.host, of.arm.build(), of.arm.schedule):
        for sample in of.samples:
            inputs, _ = chat_inputs(processor, [turns_of(processor, sample)], [sample.images])
            inputs = inputs.to(model.device, model.dtype)
            ids = model.generate(**inputs, max_new_tokens=of.task.max_new_tokens)
            words = ids[0, inputs["input_ids"].shape[1] :]
            found[sample.id] = processor.tokenizer.decode(words, skip_special_tokens=True).strip()
    return found


def runner(of: Subject, batch: int, workers: int, ordered: bool) -> dict[str, str]:
    """Answers by sample, as a run makes them: to disk, with traces and divergences.

    Args:
        batch: samples a forward.
        workers: processes that make batches.
        ordered: by length; in the task's order otherwise.
    """
    folder = Path(tempfile.mkdtemp())
    try:
        machine = Machine(of.config["trainer"] | {"batch": batch, "workers": workers}, folder)
        feed = machine.feed(of.samples, of.loaded.processor)
        order = by_length(of.samples, of.loaded.processor) if ordered else list(range(len(of.samples)))
        rows = answer(of.loaded, of.arm, of.task, of.samples, feed, order, folder / "rows", None, None, machine)
        return {name: row["prediction"] for name, row in rows.items()}
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--samples", type=int, default=360)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="of each way, in turn")
    parser.add_argument("--busy", action="store_true", help="factors of processor time, where other jobs run beside")
    parser.add_argument(
        "words", nargs="*", default=["pruner=btp", "schedule=uniform", "budget.share=0.3"], help="as for run.py"
    )
    args = parser.parse_args()
    of = subject(args.words, args.samples)
    ways: dict[str, Callable[[], dict[str, str]]] = {
        "loop, one at a time": lambda: plain(of),
        "runner, batch 1": lambda: runner(of, 1, 0, False),
        f"runner, batch {args.batch}, in the task's order": lambda: runner(of, args.batch, 0, False),
        f"runner, batch {args.batch}, by length": lambda: runner(of, args.batch, 0, True),
        f"the same, batches made by {args.workers} process(es)": lambda: runner(of, args.batch, args.workers, True),
    }
    wall: dict[str, list[float]] = {name: [] for name in ways}
    here: dict[str, list[float]] = {name: [] for name in ways}
    said: dict[str, dict[str, str]] = {}
    for turn in range(args.repeats + 1):  # the first warms up
        for name, way in ways.items():
            began, busy = time.perf_counter(), time.process_time()
            said[name] = way()
            if turn:
                wall[name].append(time.perf_counter() - began)
                here[name].append(time.process_time() - busy)
    first = next(iter(ways))
    print(f"\n{hardware_line(of.loaded.host.device, of.config['model']['dtype'])}; {' '.join(args.words)}")
    print("| way | samples a second | of processor time | times the loop | same answers |\n" + "|" + "---|" * 5)
    for name in ways:
        speeds = [args.samples / min(times[name]) for times in (wall, here)]
        factor = min(here[first]) / min(here[name]) if args.busy else min(wall[first]) / min(wall[name])
        same = sum(said[name][s.id] == said[first][s.id] for s in of.samples)
        print(f"| {name} | {speeds[0]:.1f} | {speeds[1]:.1f} | {factor:.2f} | {same} of {len(of.samples)} |")


if __name__ == "__main__":
    main()
