"""hydra/sweeper=optuna: Hydra finds sweepers in packages of this name only; see btp/runner/sweeps/optuna_sweep.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict


class OptunaSweeper(Sweeper):
    """Cells whose knobs Optuna proposes, batch by batch.

    Args:
        n_trials: cells in all, those of earlier starts included.
        n_jobs: cells that are proposed, and launched, together.
        maximize, minimize: what of a finished run is to be large, and what small.
        sampler: tpe | nsgaii | random | gp.
        seed: of the sampler.
        storage: an Optuna storage; null is SQLite in the sweep's folder.
        study_name: in that storage; null is the name of the sweep's folder.
    """

    def __init__(
        self,
        n_trials: int,
        n_jobs: int,
        maximize: Sequence[str],
        minimize: Sequence[str],
        sampler: str,
        seed: int,
        storage: str | None,
        study_name: str | None,
    ) -> None:
        self.n_trials, self.n_jobs = n_trials, n_jobs
        self.objectives = dict.fromkeys(maximize, "maximize") | dict.fromkeys(minimize, "minimize")
        self.sampler, self.seed, self.storage, self.study_name = sampler, seed, storage, study_name

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """As Hydra calls it."""
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Propose, launch and tell, until there are `n_trials`."""
        from btp.runner.sweeps.optuna_sweep import run_study  # late: --help needs no Optuna

        assert self.launcher is not None
        assert self.config is not None
        try:
            run_study(self, arguments, self.launcher, self.config.hydra.sweep.dir, self._cell)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)

    def _cell(self, words: list[str]) -> Any:
        """The config of a cell with these words, as a launcher would have it."""
        assert self.config is not None
        assert self.hydra_context is not None
        composed = self.hydra_context.config_loader.load_sweep_config(self.config, words)
        with open_dict(composed):
            del composed["hydra"]
        return OmegaConf.to_container(composed, resolve=True)
