"""One run, from request to report: `python -m btp.runner.worker REQUEST.json`, started by run.py; no Hydra app.

With --serve it computes one request after another, and keeps the model between them.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from btp.core.fit import OutOfReach
from btp.models.features import Shelf
from btp.models.load import Loaded, load
from btp.models.recognise import check_library
from btp.report.page import write_report
from btp.report.screen import screen_table
from btp.runner.arms import UNPRUNED, Arm, build_method, shared_identity
from btp.runner.batches import Collate, Feed, by_length, visual_tokens
from btp.runner.budget import pictures_of
from btp.runner.compositions import method_of
from btp.runner.contents import make_dataset
from btp.runner.corpus import corpus_metrics
from btp.runner.errors import say
from btp.runner.evaluate import answer
from btp.runner.folder import RunFolder, spread
from btp.runner.identity import digest
from btp.runner.inert import check_inert
from btp.runner.launch import FAILED, STOPPED, Outcome
from btp.runner.machine import Lost, Machine, place
from btp.runner.named import Named
from btp.runner.planning import plan_arms
from btp.runner.profile import Costs, cost_table, hardware_line, profile, synthetic_inputs, task_inputs
from btp.runner.ranks import LOST
from btp.runner.store import Answers, held
from btp.runner.tracker import track
from btp.runner.tracker_run import check_login
from btp.runner.views import describe_views
from btp.runner.ways import OwnWay, draw
from btp.runner.whole import write_json
from btp.tasks.sample import Sample, Task


class Run:
    """The phases of one run and what they share.

    Args:
        config: resolved.
        kept: models that earlier runs of this process left for later ones; None keeps none.
    """

    def __init__(self, config: Mapping[str, Any], kept: dict[str, Loaded] | None = None):
        check_library()
        check_login(config["logger"])
        torch.manual_seed(config["seed"])
        named = Named.of(config)
        self.config, self._kept = named.config, kept
        self.checkpoint_folder, self.checkpoint, self.identity = named.source, named.checkpoint, named.identity
        self.store = Path(config["output"]) / ".store"
        self.folder = RunFolder(named.folder)
        self.computing = False
        self.machine = Machine(config["trainer"], self.folder.path)
        if set(self.machine.gather(self.identity)) != {self.identity}:
            raise ValueError(
                "the processes of this run do not see the same code, checkpoint and files: something was changed while "
                "they started. Start the run again."
            )
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

    def go(self, table: bool = True) -> None:
        """Do all that is still open, and show where it lies, with the table unless that comes later."""
        if self.machine.agree(self.folder.finished and self.config["resume"]):
            if self.machine.leads:
                print(f"this run is finished: {self.folder.path} (resume=false computes it anew)")
        else:
            guard = held(self.folder.path / ".lock", "this very run") if self.machine.leads else nullcontext()
            with guard:
                if not self.machine.agree(self.folder.finished and self.config["resume"]):  # by another run meanwhile
                    self._compute_or_refuse()
        if self.machine.leads:
            track(self.config, self.folder.path)
            self._show(table)

    def _compute_or_refuse(self) -> None:
        try:
            self._compute()
        except (ValueError, OSError):
            if self.machine.leads and not self.computing:
                self.folder.withdraw()
            raise

    def _compute(self) -> None:
        config = self.config
        if self.machine.leads:
            self.folder.begin(config, self.identity, hardware_line(self.machine.device, config["model"]["dtype"]))
        build_method(config["pruner"]["name"], method_of(config["pruner"]))  # its settings, before any weight is read
        with self.phase("load"):
            self.loaded = self._load()
        if self.machine.leads and self.loaded.notes:
            self.folder.update(notes=list(self.loaded.notes))
            print(*self.loaded.notes, sep="\n", flush=True)
        if config["model"]["weights"] == "random":
            self._cost_only()
        else:
            self._study()

    def _load(self) -> Loaded:
        key = digest(self.config["model"], self.checkpoint, str(self.checkpoint_folder), str(self.machine.device))
        kept = self._kept if self._kept is not None else {}
        if key not in kept:
            kept.clear()  # one model at a time
            kept[key] = load(self.config["model"], self.checkpoint_folder, self.machine.device)
        return kept[key]

    def _finish(self) -> None:
        """Mark the run as finished, and only then draw the report, which says so."""
        self.folder.update(state="finished", seconds=round(time.perf_counter() - self.began, 1))

    def _study(self) -> None:
        config = self.config
        task: Task = make_dataset(config["task"]["dataset"])
        with self.phase("samples"):
            samples = draw(task, config["limit"])
            pictured = visual_tokens(samples, self.loaded.processor)
            order = by_length(samples, self.loaded.processor, pictured)
            collate = task.collate if isinstance(task, OwnWay) else Collate
            shown = next((i for i, tokens in enumerate(pictured) if tokens), 0)
            first = collate(self.loaded.processor)([samples[shown]]).inputs
        with self.phase("calibrate"):
            unequal = len(set(pictured)) > 1
            arms = self._arms(first, unequal)
        rows = {}
        with self.machine.feed(samples, self.loaded.processor, collate) as feed:
            for arm in arms:
                with self.phase(f"answer {arm.name}"):
                    rows[arm.name] = self._answer(arm, task, samples, feed, order)
        sizes = self.machine.gather(self.machine.batch.used)
        if not self.machine.leads:
            return
        self.folder.update(batch=self.machine.batch.describe() | {"used": min(sizes)})
        method = next((a for a in arms if a.role == "method"), None)
        listing = _listed(arms, rows, unequal and config["budget"]["tokens"] is None)
        self.folder.update(arms=listing, budget=_of_method(listing), chance=task.chance(samples))
        if method is not None and method.schedule:
            with self.phase("inert"):
                found = check_inert(self.loaded, method, spread(samples, 8), task.max_new_tokens)
                self.folder.update(inert=found)
        self.folder.write_samples(arms, rows, samples, task)
        self.folder.update(metrics=corpus_metrics(task, arms, rows, samples))
        seen = spread(samples, config["overlays"])
        self.folder.write_pictures(seen, {s.id: self._places(s, collate) for s in seen})
        if config["cost"]["enabled"]:
            measured = [s for s, tokens in zip(samples, pictured, strict=True) if tokens] or samples
            self._cost(arms, task_inputs(self.loaded, measured[: config["cost"]["batch"]]))
        self._finish()
        write_report(self.folder.path)

    def _cost_only(self) -> None:
        """Without weights there is nothing to answer: only what the architecture costs."""
        if self.config["pruner"]["name"] == "none":
            raise ValueError("model.weights=random measures the cost of a pruner. Choose one with pruner=...")
        inputs = synthetic_inputs(self.loaded, self.config["cost"]["batch"], self.config["model"]["example"])
        arms = self._arms(inputs)
        if not self.machine.leads:
            return
        listing = [arm.describe() for arm in arms]
        self.folder.update(arms=listing, budget=_of_method(listing))
        self._cost(arms, inputs)
        self._finish()

    def _arms(self, inputs: Mapping[str, Any], unequal: bool = False) -> list[Arm]:
        place = (self.checkpoint, self.store, self.folder.path, self.machine)
        total = int(self.loaded.host.visual_mask(inputs)[0].sum())
        return plan_arms(self.config, self.loaded, *place, total, pictures_of(inputs), unequal)

    def _answer(
        self, arm: Arm, task: Task, samples: list[Sample], feed: Feed, order: list[int]
    ) -> dict[str, dict[str, Any]]:
        self.computing = True
        shared = shared_identity(self.config, self.checkpoint)
        home = self.store / "answers"
        baseline = home / Arm.unpruned().identity(shared)
        folder = home / arm.identity(shared)
        shelf = Shelf(self.store / "features" / shared, self.config["cache_gib"] * 2**30)
        features = shelf if self.config["cache"] else None
        guard = held(folder.with_suffix(".lock"), f"the answers of {arm.name}") if self.machine.leads else nullcontext()
        with guard:
            if not self.config["resume"] and self.machine.leads:
                Answers(folder).clear()
            self.machine.sync()
            reference = None if arm.name == UNPRUNED else baseline
            return answer(self.loaded, arm, task, samples, feed, order, folder, reference, features, self.machine)

    def _cost(self, arms: list[Arm], inputs: dict[str, Any]) -> None:
        self.computing = True
        with self.phase("cost"):
            settings = {k: self.config["cost"][k] for k in ("repeats", "warmup", "output_tokens")}
            shared = shared_identity(self.config, self.checkpoint)
            store = Costs(self.store / "costs", shared, self.config["resume"])
            write_json(self.folder.path / "cost.json", profile(self.loaded, arms, inputs, store, **settings))

    def _places(self, sample: Sample, collate: type[Collate]) -> dict[str, Any]:
        if not len(sample.images):
            return {}
        layout = self.loaded.host.layout(collate(self.loaded.processor)([sample]).inputs)
        return describe_views(self.loaded.host, layout, sample.images[0])

    def _show(self, table: bool) -> None:
        console, path = Console(), self.folder.path
        random = self.config["model"]["weights"] == "random"
        if table:
            console.print(cost_table(path) if random else screen_table(path))
        console.print(f"costs: {path / 'cost.json'}" if random else f"report: {path / 'report.html'}", soft_wrap=True)


def _listed(arms: Sequence[Arm], rows: Mapping[str, Mapping[str, Any]], shares: bool) -> list[dict[str, Any]]:
    """The arms as run.json lists them, with budgets as means over what was answered; `shares` as in Facts."""
    planned = arms[0].reached
    totals = [row["total"] for row in rows[UNPRUNED].values()]
    listing = [arm.describe() for arm in arms]
    for entry in listing:
        happened = [sum(row["visual"]) / len(row["visual"]) for row in rows[entry["arm"]].values()]
        entry["budget"]["reached"] = round(sum(happened) / len(happened), 4)
        if shares and planned and entry["budget"]["asked"] is not None:  # of each sample's own tokens
            entry["budget"]["asked"] = round(entry["budget"]["asked"] * sum(totals) / len(totals) / planned, 4)
    return listing


def _of_method(listing: list[dict[str, Any]]) -> dict[str, Any]:
    """The budget of the method's arm, of the unpruned one where there is none."""
    return next((entry["budget"] for entry in listing if entry["role"] == "method"), listing[0]["budget"])


def main() -> int:
    """Run one request, or with --serve those that come over stdin, one path a line.

    Returns:
        The exit code of the last run.
    """
    if sys.argv[1:] != ["--serve"]:
        return handle(Path(sys.argv[1])).code
    code, loaded, threads = 0, {}, torch.get_num_threads()
    for line in sys.stdin:
        environment = dict(os.environ)
        outcome = handle(Path(line.strip()), loaded)
        if outcome.leaves:
            return outcome.code
        code = outcome.code
        os.environ.clear()
        os.environ.update(environment)
        torch.set_num_threads(threads)
        gc.collect()
    return code


def handle(request: Path, loaded: dict[str, Loaded] | None = None) -> Outcome:
    """Run a request; an error is one message, with the traceback in the run folder's error.log.

    Args:
        request: a JSON file with the resolved config; how it ended is written beside it.
        loaded: models that earlier requests of this process left, and this one may; None for a process of its own.
    """
    config = json.loads(request.read_text())
    run, rank, world = None, 0, 1
    try:
        rank, world = place(config["trainer"])
        if world > 1:
            signal.signal(signal.SIGTERM, _another_has_failed)
        run = Run(config, loaded)
        run.go(table=loaded is None)
        outcome = Outcome(0, folder=str(run.folder.path))
    except KeyboardInterrupt:
        outcome = Outcome(STOPPED, "stopped", leaves=True)
    except Lost:
        outcome = Outcome(LOST, folder=str(run.folder.path) if run is not None else None)
    except Exception as error:
        if config["debug"]:
            raise
        expected = isinstance(error, ValueError | OSError | RuntimeError)
        message = " ".join((str(error) if expected else f"{type(error).__name__}: {error}").split())
        folder = log = None
        if run is not None and run.folder.path.exists():  # not of a run that was refused
            folder = str(run.folder.path)
            log = run.folder.fail(message, traceback.format_exc(), rank)
        if world == 1:  # of several, who started them says it once
            say(message, *([f"({log} says where)"] if log else []))
        sound = isinstance(error, ValueError | OSError)  # anything else may have left the device in disorder
        outcome = Outcome(FAILED, message, folder, isinstance(error, OutOfReach), not sound)
    outcome.write(request, rank)
    return outcome


def _another_has_failed(number: int, frame: Any) -> None:
    raise Lost("another process of this run has failed")


if __name__ == "__main__":
    sys.exit(main())
