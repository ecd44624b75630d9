"""Optuna sweep: cells whose hyper-parameters Optuna proposes, for several objectives, resumable.

A trial's number is its cell's. A trial that was under way when the sweep was killed is launched again; its run has the
same identity and goes on at its next sample.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Transformer
from hydra.plugins.launcher import Launcher
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from rich.box import SIMPLE
from rich.table import Table

from btp.core.check_settings import check_one_of
from btp.report.terminal import console, literal
from btp.runner.sweeps.cells import FINISHED, Cells
from btp.runner.sweeps.outcomes import COST, Prospect, outcomes

SAMPLERS = {
    "tpe": optuna.samplers.TPESampler,
    "nsgaii": optuna.samplers.NSGAIISampler,
    "random": optuna.samplers.RandomSampler,
    "gp": optuna.samplers.GPSampler,
}
Space = Mapping[str, BaseDistribution]
Compose = Callable[[list[str]], Mapping[str, Any]]


class Settings(Protocol):
    """What conf/hydra/sweeper/optuna.yaml sets."""

    n_trials: int
    n_jobs: int
    objectives: dict[str, str]
    sampler: str
    seed: int
    storage: str | None
    study_name: str | None


def run_study(settings: Settings, arguments: Sequence[str], launcher: Launcher, folder: str, compose: Compose) -> None:
    """Propose, launch and tell, until there are `n_trials` trials.

    Args:
        settings: Settings of the sweeper.
        arguments: the sweep's overrides; those with several values or an interval are the knobs.
        launcher: runs cells.
        folder: Folder of the sweep.
        compose: makes the resolved config of a cell from its words.

    Raises:
        ValueError: nothing to propose, or an unknown sampler, direction or objective.
    """
    fixed, space = knobs(arguments)
    first = [f"{key}={_any_of(choices)}" for key, choices in space.items()]
    check_objectives(settings.objectives, Prospect(compose([*fixed, *first]), {_group(key) for key in space}))
    study = open_study(settings, space, Path(folder))

    def compute(trials: Mapping[int, Mapping[str, Any]]) -> None:
        for first, batch in _consecutive(trials):
            words = [[*fixed, *(f"{key}={value}" for key, value in params.items())] for params in batch]
            launcher.launch(words, initial_job_idx=first)
        ended = {cell.number: cell for cell in Cells(Path(folder)).read()}
        for number in trials:
            cell = ended.get(number)
            if cell is not None and cell.state == FINISHED and cell.folder is not None:
                study.tell(number, _values(Path(cell.folder), settings.objectives))
            else:
                study.tell(number, state=TrialState.FAIL)

    compute({t.number: t.params for t in study.get_trials(states=(TrialState.RUNNING,)) if set(t.params) == set(space)})
    while (left := settings.n_trials - len(study.get_trials(deepcopy=False))) > 0:
        asked = [study.ask(dict(space)) for _ in range(min(left, settings.n_jobs))]
        compute({trial.number: trial.params for trial in asked})
    _show(study, settings)


def _consecutive(trials: Mapping[int, Mapping[str, Any]]) -> list[tuple[int, list[Mapping[str, Any]]]]:
    """Batches of cells whose numbers follow each other, as launchers count: (first number, knobs of each)."""
    groups = groupby(enumerate(sorted(trials)), key=lambda pair: pair[1] - pair[0])
    batches = [[number for _, number in group] for _, group in groups]
    return [(numbers[0], [trials[number] for number in numbers]) for numbers in batches]


def knobs(arguments: Sequence[str]) -> tuple[list[str], dict[str, BaseDistribution]]:
    """The overrides that stay as they are, and what there is to choose for the others.

    Raises:
        ValueError: none of them leaves a choice.
    """
    fixed: list[str] = []
    space: dict[str, BaseDistribution] = {}
    for override in OverridesParser.create().parse_overrides(list(arguments)):
        if override.is_sweep_override():
            space[override.get_key_element()] = _distribution(override)
        else:
            fixed.append(str(override.input_line))
    if not space:
        raise ValueError(
            "hydra/sweeper=optuna has nothing to choose. Give a key several values (stages=1,2,3), a range "
            "(stages='range(1,5)') or an interval (schedule.balance.first='interval(0,1)')."
        )
    return fixed, space


def _distribution(override: Override) -> BaseDistribution:
    value: Any = override.value()
    log = "log" in getattr(value, "tags", ())
    if override.is_choice_sweep():
        return CategoricalDistribution(list(override.sweep_iterator(transformer=Transformer.encode)))
    if isinstance(value, RangeSweep):
        low, high, step = value.start, value.stop, value.step
        if all(isinstance(n, int) for n in (low, high, step)):
            return IntDistribution(low, high - 1, step=step, log=log)
        return FloatDistribution(low, max(value.range()), step=None if log else step, log=log)  # it excludes its stop
    assert isinstance(value, IntervalSweep)
    if isinstance(value.start, int) and isinstance(value.end, int):  # int(interval(1, 3))
        return IntDistribution(value.start, value.end, log=log)
    return FloatDistribution(float(value.start or 0), float(value.end or 0), log=log)


def _any_of(choices: BaseDistribution) -> Any:
    """One of the values that a knob may have."""
    if isinstance(choices, CategoricalDistribution):
        return choices.choices[0]
    assert isinstance(choices, IntDistribution | FloatDistribution)
    return choices.low


def _group(knob: str) -> str:
    """The part of the config that a knob turns."""
    return knob.lstrip("+").split(".")[0].split("@")[0]


def check_objectives(objectives: Mapping[str, str], prospect: Prospect) -> None:
    """Refuse objectives that no cell will report, before any is computed.

    Args:
        objectives: direction by name.
        prospect: Prospect of the cells.

    Raises:
        ValueError: names the first, and what there is.
    """
    for name, direction in objectives.items():
        if prospect.reports(name):
            continue
        if name.startswith(f"{COST}/") and not prospect.costs:
            raise ValueError(
                f"hydra.sweeper.{direction} names {name!r}, but cost.enabled is false, so that no run measures costs. "
                "Set cost.enabled=true, or another objective."
            )
        costs = [f"{COST}/NAME"] if prospect.costs else []
        raise ValueError(_unreported(name, direction, [*prospect.names(), *costs]))


def _unreported(name: str, direction: str, found: Iterable[str]) -> str:
    """What to say of an objective that runs do not report; `found` is what they do."""
    known = sorted(found)
    near = difflib.get_close_matches(name, known, 1)
    hint = f"Did you mean {near[0]}? " if near else ""
    return (
        f"hydra.sweeper.{direction} names {name!r}, which a run does not report. {hint}Choose from: {', '.join(known)}."
    )


def open_study(settings: Settings, space: Space, folder: Path) -> optuna.Study:
    """The study on disk, with what earlier starts found.

    Raises:
        ValueError: an unknown sampler or direction, or a study with other knobs or objectives.
    """
    check_one_of("hydra.sweeper.sampler", settings.sampler, SAMPLERS)
    if not settings.objectives:
        raise ValueError("Nothing is to be maximised or minimised. Set hydra.sweeper.maximize=[accuracy].")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=settings.study_name or folder.name,
        storage=settings.storage or f"sqlite:///{folder.resolve()}/study.db",
        directions=list(settings.objectives.values()),
        sampler=SAMPLERS[settings.sampler](seed=settings.seed),
        load_if_exists=True,
    )
    asked = {"objectives": settings.objectives, "knobs": {key: repr(found) for key, found in space.items()}}
    before = study.user_attrs.get("asked", asked)
    if before != asked:
        raise ValueError(
            f"the study in {folder} was begun with {before}, but {asked} is asked now, which cannot be compared. "
            "Give the sweep another folder: hydra.sweep.dir."
        )
    study.set_user_attr("asked", asked)
    return study


def _values(run: Path, objectives: Mapping[str, str]) -> list[float]:
    found = outcomes(run)
    missing = [name for name in objectives if name not in found]
    if missing:
        same = [name for name in found if name.partition("/")[0] == missing[0].partition("/")[0]]
        known = same if "/" in missing[0] and same else [name for name in found if "/" not in name]
        raise ValueError(_unreported(missing[0], objectives[missing[0]], known))
    return [found[name] for name in objectives]


def _show(study: optuna.Study, settings: Settings) -> None:
    """The trials that no other beats in every objective."""
    table = Table(title="not beaten in every objective by any other", title_justify="left", box=SIMPLE)
    for name in ("cell", *settings.objectives):
        table.add_column(literal(name), justify="right")
    table.add_column("knobs", overflow="fold")
    for trial in sorted(study.best_trials, key=lambda t: t.values[-1]):
        chosen = " ".join(f"{key}={value}" for key, value in trial.params.items())
        table.add_row(str(trial.number), *(f"{value:.4g}" for value in trial.values), literal(chosen))
    console().print(table)
