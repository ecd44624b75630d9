"""One run, from request to report: `python -m btp.runner.worker REQUEST.json`, started by run.py; no Hydra app."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from rich.console import Console

from btp.models.load import Loaded, check_library, find_checkpoint, load
from btp.report.page import write_report
from btp.report.screen import screen_table
from btp.runner.arms import UNPRUNED, Arm, Facts, build_arms, shared_identity
from btp.runner.batches import Collate, by_length
from btp.runner.calibrate import calibrate
from btp.runner.evaluate import answer
from btp.runner.folder import RunFolder, spread
from btp.runner.identity import checkpoint, code, digest, method_code
from btp.runner.inert import check_inert
from btp.runner.machine import Machine
from btp.runner.profile import cost_table, hardware_line, profile, synthetic_inputs, task_inputs
from btp.runner.store import Answers, held, write_json
from btp.runner.tracker import check_login, track
from btp.tasks.sample import Sample, Task

FREE = ("output", "resume", "debug", "logger", "trainer", "command", "overlays")


class Run:
    """The phases of one run and what they share.

    Args:
        config: resolved.
    """

    def __init__(self, config: Mapping[str, Any]):
        self.config = config
        check_library()
        check_login(config["logger"])
        torch.manual_seed(config["seed"])
        self.checkpoint_folder = find_checkpoint(config["model"])
        self.checkpoint = checkpoint(self.checkpoint_folder, [config["model"]["config"]])
        self.identity = run_identity(config, self.checkpoint)
        output = Path(config["output"])
        names = [config[g]["name"] for g in ("model", "pruner", "task")]
        self.store = output / ".store"
        self.folder = RunFolder(output / "-".join([*names, self.identity[:8]]))
        self.machine = Machine(config["trainer"], self.folder.path)
        self.began = time.perf_counter()
        self.loaded: Loaded

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase into run.json."""
        began = time.perf_counter()
        yield
        if self.machine.leads:
            phases = self.folder.state["phases"] | {name: round(time.perf_counter() - began, 2)}
            self.folder.update(phases=phases)

    def go(self) -> None:
        """Do all that is still open, and show the table."""
        if self.folder.finished and self.config["resume"]:
            print(f"this run is finished: {self.folder.path} (resume=false computes it anew)")
        else:
            guard = held(self.folder.path / ".lock", "this very run") if self.machine.leads else nullcontext()
            with guard:
                if not (self.folder.finished and self.config["resume"]):  # another process may have done it meanwhile
                    self._compute()
        if self.machine.leads:
            self._show()

    def _compute(self) -> None:
        config = self.config
        if self.machine.leads:
            self.folder.begin(config, self.identity, hardware_line(self.machine.device, config["model"]["dtype"]))
        with self.phase("load"):
            self.loaded = load(config["model"], self.checkpoint_folder, self.machine.device)
        if config["model"]["weights"] == "random":
            self._cost_only()
        else:
            self._study()

    def _finish(self) -> None:
        """Mark the run as finished, and only then draw the report, which says so."""
        self.folder.update(state="finished", seconds=round(time.perf_counter() - self.began, 1))

    def _study(self) -> None:
        config = self.config
        task: Task = instantiate(config["task"]["dataset"])
        count = min(len(task), config["limit"]) if config["limit"] else len(task)
        if count == 0:
            raise ValueError("The task has no samples. Point task.dataset at some, or raise limit.")
        with self.phase("samples"):
            samples = [task[i] for i in range(count)]
            order = by_length(samples)
            total = int(self._layout(samples[0]).visual.sum())
        with self.phase("calibrate"):
            arms = self._arms(total)
        rows = {}
        for arm in arms:
            with self.phase(f"answer {arm.name}"):
                rows[arm.name] = self._answer(arm, task, order, samples)
        if not self.machine.leads:
            return
        method = next((a for a in arms if a.role == "method"), None)
        listing = [arm.describe() for arm in arms]
        self.folder.update(arms=listing, chance=task.chance(samples))
        if method is not None and method.schedule:
            with self.phase("inert"):
                found = check_inert(self.loaded, method, spread(samples, 8), task.max_new_tokens)
                self.folder.update(inert=found)
        frame = self.folder.write_samples(arms, rows, samples, task)
        shown = spread(samples, config["overlays"])
        self.folder.write_pictures(shown, {s.id: self._layout(s) for s in shown})
        if config["cost"]["enabled"]:
            self._cost(arms, task_inputs(self.loaded, samples[: config["cost"]["batch"]]))
        self._finish()
        write_report(self.folder.path)
        with self.phase("track"):
            track(config, self.folder.path, frame, listing)

    def _cost_only(self) -> None:
        """Without weights there is nothing to answer: only what the architecture costs."""
        if self.config["pruner"]["name"] == "none":
            raise ValueError("model.weights=random measures the cost of a pruner. Choose one with pruner=...")
        inputs = synthetic_inputs(self.loaded, self.config["cost"]["batch"])
        arms = self._arms(int(self.loaded.host.visual_mask(inputs)[0].sum()))
        self.folder.update(arms=[arm.describe() for arm in arms])
        self._cost(arms, inputs)
        self._finish()

    def _arms(self, total: int) -> list[Arm]:
        facts = Facts(self.loaded.host.num_layers, total)

        def calibrated() -> list[dict[str, Any]]:
            if self.config["model"]["weights"] == "random":
                raise ValueError(
                    "A calibrated schedule needs a model with weights, but model.weights is random. "
                    "Choose schedule=uniform or one of schedule=paper_..."
                )
            return calibrate(
                self.config, self.loaded, self.checkpoint, self.store, self.folder.path, self.machine, total
            )

        return build_arms(self.config, facts, calibrated)

    def _answer(self, arm: Arm, task: Task, order: list[int], samples: list[Sample]) -> dict[str, dict[str, Any]]:
        shared = shared_identity(self.config, self.checkpoint)
        home = self.store / "answers"
        baseline = home / Arm.unpruned().identity(shared)
        folder = home / arm.identity(shared)
        ids = {i: samples[i].id for i in order}
        guard = held(folder.with_suffix(".lock"), f"the answers of {arm.name}") if self.machine.leads else nullcontext()
        with guard:
            if not self.config["resume"] and self.machine.leads:
                Answers(folder).clear()
            self.machine.sync()
            reference = None if arm.name == UNPRUNED else baseline
            return answer(self.loaded, arm, task, order, ids, folder, reference, self.machine)

    def _cost(self, arms: list[Arm], inputs: dict[str, Any]) -> None:
        with self.phase("cost"):
            settings = {k: self.config["cost"][k] for k in ("repeats", "warmup", "output_tokens")}
            write_json(self.folder.path / "cost.json", profile(self.loaded, arms, inputs, **settings))

    def _layout(self, sample: Sample) -> Any:
        return self.loaded.host.layout(Collate(self.loaded.processor)([sample]).inputs)

    def _show(self) -> None:
        console = Console()
        if self.config["model"]["weights"] == "random":
            console.print(cost_table(self.folder.path))
            console.print(f"costs: {self.folder.path / 'cost.json'}", soft_wrap=True)
            return
        console.print(screen_table(self.folder.path))
        console.print(f"report: {self.folder.path / 'report.html'}", soft_wrap=True)


def run_identity(config: Mapping[str, Any], checkpoint: str) -> str:
    """Names a run by what changes its result: not by where it is logged or on what it ran."""
    what = {k: v for k, v in config.items() if k not in FREE}
    what["model"] = {
        k: v for k, v in config["model"].items() if k not in ("path", "hub", "revision", "device_map", "download")
    }
    method = config["pruner"]["method"]
    sources = code("core", "engine", "models", "tasks", "measure", "runner")
    return digest(what, checkpoint, sources, method_code(method["_target_"] if method else None))


def main() -> int:
    """Run the request; an error is one message, with the traceback in the run folder's error.log."""
    config = json.loads(Path(sys.argv[1]).read_text())
    run = None
    try:
        run = Run(config)
        run.go()
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    except Exception as error:
        if config["debug"]:
            raise
        expected = isinstance(error, ValueError | OSError | RuntimeError)
        message = str(error) if expected else f"{type(error).__name__}: {error}"
        print(f"error: {message}", file=sys.stderr)
        if run is not None and run.machine.leads:
            run.folder.fail(message)
            (run.folder.path / "error.log").write_text(traceback.format_exc())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
