"""One run, from request to report: `python -m btp.runner.run REQUEST.json`, started by run.py; no Hydra app.

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
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import torch

from btp.core.host import PROMPT_TOKENS
from btp.models.loading.checks import check_library
from btp.models.loading.load import Loaded, load, sketch
from btp.models.vision_cache import Shelf
from btp.report.pages.run_page import write_report
from btp.report.tables.screen_table import screen_table
from btp.report.terminal import console
from btp.report.text.floor_effect import example, nothing_right
from btp.results.atomic import clear_parts, write_json
from btp.results.status import UNPRUNED, lacks_report_alone
from btp.results.writer import RunFolder, spread
from btp.runner.arms import Arm, budget_of_method, build_method, listed, shared_identity
from btp.runner.calibration.calibration_set import calibration_set
from btp.runner.datasets import make_dataset
from btp.runner.devices import Lost, Machine, place
from btp.runner.evaluation.answer_store import Answers, held
from btp.runner.evaluation.cost import Costs, cost_table, hardware_line, profile, synthetic_inputs, task_inputs
from btp.runner.evaluation.data import Feed
from btp.runner.evaluation.evaluate import answer
from btp.runner.evaluation.eviction_effect import check_effect
from btp.runner.evaluation.forecast import say_forecast
from btp.runner.evaluation.prompts.shorten import check_contexts, shortened
from btp.runner.evaluation.visual_totals import visual_count
from btp.runner.evaluation.ways.generate import Foreign
from btp.runner.evaluation.ways.way import Way
from btp.runner.evaluation.ways.way_of_task import way_of
from btp.runner.explain.kept_words import kept_words
from btp.runner.identity import digest
from btp.runner.messages import one_line, say
from btp.runner.plan_arms import plan_arms
from btp.runner.pruner_lists import method_of
from btp.runner.run_identity import Named
from btp.runner.tracking.tracker import tracker_of
from btp.runner.training.action import train
from btp.runner.workers.launch import FAILED, STOPPED, Outcome
from btp.runner.workers.ranks import LOST
from btp.schedules.fit import OutOfReach
from btp.schedules.meet import pictures_of
from btp.tasks.sample import Sample, Task
from btp.tasks.size_limits import check_questions, pixels, sizes_within


class Run:
    """The phases of one run and what they share.

    Args:
        config: resolved.
        kept: models that earlier runs of this process left for later ones; None keeps none.
        named: the run's names, where they are not those of a checkpoint on disk.
        loaded: a model that is there already, in place of one on disk.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        kept: dict[str, Loaded] | None = None,
        named: Named | None = None,
        loaded: Loaded | None = None,
    ):
        check_library()
        tracker_of(config["logger"]).check()
        torch.manual_seed(config["seed"])
        named = Named.of(config) if named is None else named
        self.config, self._kept, self._given = named.config, kept, loaded
        self.checkpoint_folder, self.checkpoint, self.identity = named.source, named.checkpoint, named.identity
        self.store = Path(config["output"]) / ".store"
        self.folder = RunFolder(named.folder)
        self.computing = False
        self.measures = True  # False once a table of formulas is all that this run has, and was shown
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
        if self.config.get("action") == "train":
            self.loaded = self._load()
            train(self.config, self.loaded, self.checkpoint, self.store, self.machine)
            return
        if self.machine.agree(self.folder.finished and self.config["resume"]):
            if self.machine.leads:
                print(f"this run is finished: {self.folder.path} (resume=false computes it anew)")
                self._tell(table)
            return
        self.folder.check()
        guard = held(self.folder.path / ".lock", "this very run") if self.machine.leads else nullcontext()
        with guard:
            if self.machine.leads:
                clear_parts(self.store)
            if not self.machine.agree(self.config["resume"] and self._settled()):  # by another run meanwhile
                self._compute_or_refuse()
            if self.machine.leads:
                self._tell(table)  # before another run that computes it anew may begin

    def _settled(self) -> bool:
        """Whether the run is finished, once its report is drawn where that alone is missing."""
        if self.machine.leads and lacks_report_alone(self.folder.path):
            print(f"this run is finished but for its report, which is drawn from {self.folder.path}")
            write_report(self.folder.path)
        return self.folder.finished

    def _tell(self, table: bool) -> None:
        tracker_of(self.config["logger"]).log_run(self.config, self.folder.path)
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
        if config["model"]["weights"] == "random":
            self._cost_only()
            return
        with self.phase("load"):
            self.loaded = self._load()
        if self.machine.leads:
            self.folder.update(unit=self.loaded.host.unit)
        if self.machine.leads and self.loaded.notes:
            self.folder.update(notes=list(self.loaded.notes))
            print(*self.loaded.notes, sep="\n", flush=True)
        self._study()

    def _load(self) -> Loaded:
        if self._given is not None:
            return self._given
        key = digest(self.config["model"], self.checkpoint, str(self.checkpoint_folder), str(self.machine.device))
        kept = self._kept if self._kept is not None else {}
        if key not in kept:
            kept.clear()  # one model at a time
            kept[key] = load(self.config["model"], self.checkpoint_folder, self.machine.device)
        return kept[key]

    def _finish(self) -> None:
        """Draw the report, and only then mark the run as finished: a kill in between costs the report alone."""
        ended = {"state": "finished", "seconds": round(time.perf_counter() - self.began, 1)}
        if "samples" in self.folder.state["phases"]:
            write_report(self.folder.path, ended)
        self.folder.update(**ended)

    def _study(self) -> None:
        config = self.config
        task: Task = make_dataset(config["task"]["dataset"])
        way = way_of(task)
        with self.phase("samples"):
            samples = way.draw(config["limit"])
            samples = shortened(task, samples, self.loaded)
            check_questions(samples)
            sizes = sizes_within(samples)
            way.check(self.loaded, samples)
            seen = way.look(self.loaded, samples, sizes)
        with self.phase("calibrate"):
            arms = self._arms(seen.totals, seen.pictures, any(s.targets or s.boxes for s in samples))
            check_contexts(arms, samples)
            check_effect(arms, samples, self.loaded)
        if self.machine.leads:
            shown = samples[next((i for i, tokens in enumerate(seen.estimates) if tokens), 0)]
            text = way.prompt(self.loaded, shown)
            self.folder.update(**({} if text is None else {"prompt": {"sample": shown.id, "text": text}}))
            self._say_calibration()
        rows = {}
        batches = (way.collate, [*map(pixels, sizes)], seen.groups)
        with self.machine.feed(samples, self.loaded.processor, *batches) as feed:
            for arm in arms:
                with self.phase(f"answer {arm.name}"):
                    totals = {name: row["total"] for name, row in rows.get(UNPRUNED, {}).items()}
                    rows[arm.name] = self._answer(arm, task, samples, feed, seen.order, totals)
                if arm.name == UNPRUNED and self.machine.leads and not isinstance(way, Foreign):
                    self._say_floor(way, samples, rows[UNPRUNED], shown)  # before more time goes into it
        used = self.machine.gather(self.machine.batch.used)
        if not self.machine.leads:
            return
        self.folder.update(batch=self.machine.batch.describe() | {"used": min(used)})
        method = next((a for a in arms if a.role == "method"), None)
        listing, missed = listed(arms, rows, self.loaded.host.unit)
        print(*missed, sep="\n", end="\n" if missed else "", flush=True)
        self.folder.update(arms=listing, budget=budget_of_method(listing), chance=task.chance(samples))
        if method is not None and method.schedule:
            with self.phase("inert"):
                self.folder.update(inert=way.inert(self.loaded, method, spread(samples, 8)))
        scores = {arm.name: way.scores(samples, rows[arm.name]) for arm in arms}
        self.folder.write_samples(samples, rows, scores, way.agrees)
        self.folder.update(metrics={a.name: m for a in arms if (m := way.metrics(samples, rows[a.name]))})
        drawn = spread(samples, config["overlays"])
        self.folder.write_marks({arm.name: way.marks(drawn, rows[arm.name]) for arm in arms})
        told = rows[method.name] if method is not None else {}
        self.folder.write_pictures(drawn, {s.id: way.picture(self.loaded, s, told.get(s.id)) for s in drawn})
        if self.loaded.host.unit == PROMPT_TOKENS and not isinstance(way, Foreign):
            self.folder.write_words(kept_words(self.loaded, arms, drawn, way.collate))
        if config["cost"]["enabled"]:
            measured = [s for s, tokens in zip(samples, seen.estimates, strict=True) if tokens] or samples
            some = measured[: config["cost"]["batch"]]
            self._cost(arms, task_inputs(self.loaded, some, way.collate_once), some)
        self._finish()

    def _cost_only(self) -> None:
        """Without weights there is nothing to answer: only what the architecture costs, by formula first."""
        config = self.config
        if config["pruner"]["name"] == "none":
            raise ValueError("model.weights=random measures the cost of a pruner. Choose one with pruner=...")
        with self.phase("formula"):
            self.loaded = Loaded(sketch(config["model"], self.checkpoint_folder), None)
            inputs = synthetic_inputs(self.loaded, config["cost"]["batch"], config["model"]["example"])
            arms = self._arms([visual_count(self.loaded.host, inputs)], pictures_of(inputs))
        if not self.machine.leads:
            return
        listing = [arm.describe() for arm in arms]
        self.folder.update(arms=listing, budget=budget_of_method(listing))
        host, device, cost = self.loaded.host, self.machine.device, config["cost"]
        if "llm" in host.towers:
            facts, self.measures = say_forecast(self.folder.path, host, arms, inputs, device, cost)
            self.folder.update(measurement=facts)
        if self.measures:
            with self.phase("load"):
                self.loaded = self._load()
            self._cost(arms, synthetic_inputs(self.loaded, config["cost"]["batch"], config["model"]["example"]))
        self._finish()

    def _say_calibration(self) -> None:
        """Put into run.json which pictures the stages come from, and say it where they are not the task's own."""
        found = calibration_set(self.folder.path, self.config["task"])
        if found is not None:
            self.folder.update(calibration=found)
            if not found["own"]:
                print(f"calibration: {found['said']}", flush=True)

    def _say_floor(self, way: Way, samples: list[Sample], rows: Mapping[str, Any], sample: Sample) -> None:
        """Warn of a model that answers nothing right, with the sample whose prompt is on record."""
        said = nothing_right(way.scores(samples, rows))
        if said:
            prompt, prediction = self.folder.state.get("prompt", {}).get("text"), rows[sample.id]["prediction"]
            print(f"warning: {said} {example(sample.id, prompt, prediction, sample.reference)}", flush=True)

    def _arms(self, totals: Sequence[int], pictures: int, aimed: bool = True) -> list[Arm]:
        place = (self.checkpoint, self.store, self.folder.path, self.machine)
        return plan_arms(self.config, self.loaded, *place, totals, pictures, aimed=aimed)

    def _answer(
        self, arm: Arm, task: Task, samples: list[Sample], feed: Feed, order: list[int], totals: dict[str, int]
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
            where = (folder, reference, features)
            rows = answer(self.loaded, arm, task, samples, feed, order, *where, self.machine, totals)
            self.machine.sync()  # all have read them, before another run may clear them
            return rows

    def _cost(self, arms: list[Arm], inputs: dict[str, Any], samples: Sequence[Sample] = ()) -> None:
        self.computing = True
        with self.phase("cost"):
            settings = {k: self.config["cost"][k] for k in ("repeats", "warmup", "output_tokens")}
            shared = shared_identity(self.config, self.checkpoint)
            store = Costs(self.store / "costs", shared, self.config["resume"])
            found = profile(self.loaded, arms, inputs, store, **settings, samples=samples)
            write_json(self.folder.path / "cost.json", found)

    def _show(self, table: bool) -> None:
        screen, path = console(), self.folder.path
        random = self.config["model"]["weights"] == "random"
        if table and self.measures:
            screen.print(cost_table(path) if random else screen_table(path))
        screen.print(f"costs: {path / 'cost.json'}" if random else f"report: {path / 'report.html'}", soft_wrap=True)


def main() -> int:
    """Run one request, or with --serve those that come over stdin, one path a line.

    Returns:
        The exit code of the last run.
    """
    if sys.argv[1:] != ["--serve"]:
        return handle(Path(sys.argv[1])).code
    code, loaded, threads = 0, {}, torch.get_num_threads()
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # paths, whatever terminals write
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
    config = json.loads(request.read_text(encoding="utf-8"))
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
        message = one_line(error, Path(config.get("output", ".")))
        folder = log = None
        if run is not None and run.folder.path.exists():  # not of a run that was refused
            folder = str(run.folder.path)
            log = run.folder.fail(message, traceback.format_exc(), rank)
        if world == 1:  # of several, who started them says it once
            say(message, *([f"({log} says where)"] if log else []))
        sound = isinstance(error, ValueError | OSError)  # anything else may have left the device in disorder
        outcome = Outcome(FAILED, message, folder, isinstance(error, OutOfReach), not sound)
    try:
        outcome.write(request, rank)
    except OSError as error:  # nobody hears of it but by the end of this process
        if not outcome.code:
            say(one_line(error, request.parent))
        outcome = replace(outcome, code=outcome.code or FAILED, leaves=True)
    return outcome


def _another_has_failed(number: int, frame: Any) -> None:
    raise Lost("another process of this run has failed")


if __name__ == "__main__":
    sys.exit(main())
