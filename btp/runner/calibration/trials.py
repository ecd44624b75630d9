"""Trials of a hyper-parameter search, proposed by an optimiser and kept on disk with their values.

Every proposal depends on the seed, its number and what was tried before, and on nothing else, so that a search that
was killed goes on as if it had not been.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import optuna
import torch
from optuna.distributions import FloatDistribution

from btp.core.check_settings import check_one_of
from btp.runner.evaluation.answer_store import Answers

OPTIMISERS = ("gp", "tpe")


class Trials:
    """What was tried in a search, the best of it, and what to try next.

    Args:
        space: name -> (lowest, highest).
        optimiser: gp, a Gaussian process and the log of the expected improvement | tpe, a tree of Parzen estimators.
        startup: random proposals to begin with.
        seed: Seed of the proposals.
        rows: File of finished trials; None keeps them in memory alone.
        writes: this process writes them down.

    Raises:
        ValueError: the optimiser is unknown, or a range is not one.
    """

    def __init__(
        self,
        space: Mapping[str, tuple[float, float]],
        optimiser: str,
        startup: int,
        seed: int,
        rows: Answers | None = None,
        writes: bool = True,
    ) -> None:
        check_one_of("pruner.search.optimiser", optimiser, OPTIMISERS)
        for name, (low, high) in space.items():
            if not low <= high:
                raise ValueError(
                    f"pruner.search.space.{name} comes to {low:g}..{high:g}, which is no range. Lower its first "
                    "number, or raise its second."
                )
        self._space = {name: FloatDistribution(*ends) for name, ends in space.items()}
        self._optimiser, self._startup, self._seed = optimiser, startup, seed
        self._rows, self._writes = rows, writes
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._trials: list[optuna.trial.FrozenTrial] = []
        self.found: list[dict[str, Any]] = []
        for row in sorted(rows.rows().values(), key=lambda row: int(row["sample"])) if rows is not None else ():
            self._remember({k: v for k, v in row.items() if k != "sample"})

    def __len__(self) -> int:
        return len(self.found)

    def propose(self) -> dict[str, float]:
        """What to try next."""
        seed = (self._seed * 1_000_003 + len(self)) % 2**32
        with warnings.catch_warnings(), torch.inference_mode(False), torch.enable_grad():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if self._optimiser == "gp":
                sampler: Any = optuna.samplers.GPSampler(
                    seed=seed, n_startup_trials=self._startup, deterministic_objective=True
                )
            else:
                sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=self._startup)
            study = optuna.create_study(direction="maximize", sampler=sampler)
            study.add_trials(self._trials)
            return dict(study.ask(dict(self._space)).params)

    def add(self, params: Mapping[str, float], value: float, **facts: Any) -> None:
        """Remember what a proposal was worth, on disk first.

        Args:
            facts: anything else to know about it later.
        """
        row = {**params, "value": value, **facts}
        if self._rows is not None and self._writes:
            self._rows.add([{"sample": str(len(self)), **row}])
        self._remember(row)

    @property
    def best(self) -> dict[str, Any]:
        """The trial with the highest value, the first of equals."""
        return max(self.found, key=lambda row: row["value"])

    def _remember(self, row: dict[str, Any]) -> None:
        self.found.append(row)
        params = {name: row[name] for name in self._space}
        trial = optuna.trial.create_trial(params=params, distributions=dict(self._space), value=row["value"])
        self._trials.append(trial)
