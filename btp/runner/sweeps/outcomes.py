"""Metrics of a finished run, as flat numbers under the names that dashboards and searches use."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from btp.results.reader import ANEW, read_frame
from btp.results.run_folder_schema import COST as COSTS
from btp.results.run_folder_schema import RUN, SAMPLES
from btp.results.shapes import read_json
from btp.results.status import UNPRUNED
from btp.runner.datasets import make_dataset
from btp.runner.evaluation.task_protocol import draw
from btp.runner.harness.settings import LIBRARIES
from btp.tasks.sample import Corpus, Task

MEANS = ("tokens_avg", "agreement", "kl")
COST, METRIC = "cost", "metric"


def outcomes(run: Path) -> dict[str, float]:
    """Of the run's method: accuracy, tokens_avg, agreement, kl, every ability, `metric/...` of the task, `cost/...`.

    The same of every arm, as `ARM/...` and `cost/ARM/...`. Without answers there are only costs.

    Args:
        run: the folder of a finished run.

    Raises:
        ValueError: a file in it is missing or broken.
    """
    state = read_json(run / "run.json", RUN, ANEW)
    found = corpus(state.get("metrics") or {}) | costs(run)
    if (run / "samples.parquet").exists():
        found |= summary(read_frame(run / "samples.parquet", SAMPLES))
    method = method_arm(state)
    for prefix, short in ((f"{method}/", ""), (f"cost/{method}/", "cost/")):
        found |= {short + key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
    return found


def method_arm(state: Mapping[str, Any]) -> str:
    """The arm that a run is about: its method's, the unpruned one where there is none.

    Args:
        state: run.json.
    """
    return next((arm["arm"] for arm in state["arms"] if arm["role"] == "method"), UNPRUNED)


def corpus(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What the task itself makes of each arm's answers, flat.

    Args:
        metrics: arm -> {all: {metric: value}, by_ability: {ability: {metric: value}}}.
    """
    found = {}
    for arm, parts in metrics.items():
        found |= {f"{arm}/metric/{name}": value for name, value in parts["all"].items()}
        for ability, own in parts["by_ability"].items():
            found |= {f"{arm}/metric/{name}/{ability}": value for name, value in own.items()}
    return {key: value for key, value in found.items() if isinstance(value, int | float)}


def summary(frame: pd.DataFrame) -> dict[str, float]:
    """Scores of every arm, over all and by ability."""
    out: dict[str, float] = {}
    means = frame.groupby(["arm", "ability"], as_index=False)["score"].mean()
    for arm, ability, score in zip(means["arm"], means["ability"], means["score"], strict=True):
        out[f"{arm}/{ability}"] = float(score)
    by_arm = frame.groupby("arm")
    for arm, rows in by_arm:
        out[f"{arm}/accuracy"] = float(rows.groupby("ability")["score"].mean().mean())
        for key in MEANS:
            out[f"{arm}/{key}"] = float(rows[key].mean())
    return out


def costs(run: Path) -> dict[str, float]:
    """The numbers of cost.json, flat."""
    path = run / "cost.json"
    flat: dict[str, float] = {}

    def walk(node: Any, key: str) -> None:
        if isinstance(node, dict):
            for k, v in node.items():
                walk(v, f"{key}/{k}")
        elif isinstance(node, int | float) and not isinstance(node, bool):
            flat[key] = node

    if path.exists():
        walk(read_json(path, COSTS, ANEW), "cost")
    return flat


class Prospect:
    """Names of the metrics that a run will report, before it is computed.

    Args:
        config: Config of the run, resolved.
        open_groups: parts of the config that other runs, which are meant as well, have other values of.
    """

    def __init__(self, config: Mapping[str, Any], open_groups: Collection[str] = ()) -> None:
        self.config = config
        self.open = frozenset(config if "experiment" in open_groups else open_groups)
        random = config["model"]["weights"] == "random"
        self.answers = not random or "model" in self.open
        self.costs = config["cost"]["enabled"] or random or bool(self.open & {"cost", "model"})
        self.arms = {UNPRUNED, config["pruner"]["name"], *(config.get("controls") or {})}
        self._task: Task | None = None

    def names(self) -> list[str]:
        """Outcomes of the run's method that are known by name; those of costs and of a task's metrics are not."""
        return ["accuracy", *MEANS, *sorted(self._abilities() or ())] if self.answers else []

    def reports(self, name: str) -> bool:
        """False where no such run can report an outcome of this name; True where it does, or where only a run can tell.

        Raises:
            ValueError: the task cannot be read, and has to be for an answer.
        """
        head, _, rest = name.partition("/")
        if head == COST:
            return self.costs and bool(rest)
        if not self.answers or not rest:
            return self.answers and (name in ("accuracy", *MEANS) or _holds(self._abilities(), name))
        if head == METRIC:
            return self._abilities() is None or isinstance(self._task, Corpus)
        if head in self.arms or self.open & {"pruner", "controls"}:
            return self.reports(rest) and not rest.startswith(f"{COST}/")
        return _holds(self._abilities(), name)

    def _abilities(self) -> set[str] | None:
        """Of the task's samples; None where they are another harness's, or differ between the runs that are meant."""
        if self.config["task"]["name"] in LIBRARIES or self.open & {"task", "tasks", "limit", "seed"}:
            return None
        if self._task is None:
            self._task = task = make_dataset(self.config["task"]["dataset"])
            self._found = {sample.ability for sample in draw(task, self.config["limit"])}
        return self._found


def _holds(known: Collection[str] | None, name: str) -> bool:
    return known is None or name in known
