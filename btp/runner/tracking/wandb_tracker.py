"""The tracker of W&B; wandb is imported when something is logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from btp.results.status import read_state
from btp.runner.sweeps.cells import Cell


class WandbTracker:
    """Logs runs and sweeps to W&B, offline or online.

    Args:
        logger: The logger group: mode, project, entity, group, tags, wait_s, upload_s.
    """

    names = ("wandb", "none")  # none: of sweeps begun before NoTracker was there

    def __init__(self, logger: Mapping[str, Any]) -> None:
        self.logger = logger

    def check(self) -> None:
        """Refuse an online logger without a login."""
        from btp.runner.tracking.wandb_session import check_login

        check_login(self.logger)

    def is_logged(self, run: Path, identity: str) -> bool:
        """Whether the run is in W&B under its identity."""
        return (read_state(run).get("wandb") or {}).get("id") == identity

    def log_run(self, config: Mapping[str, Any], run: Path) -> None:
        """Log a run under its identity as W&B id."""
        from btp.runner.tracking.wandb_run import track

        track(config, run)

    def log_sweep(self, sweep: Path, cells: Sequence[Cell]) -> None:
        """Log the sweep in the group of its cells."""
        from btp.runner.tracking.wandb_sweep import track_sweep

        track_sweep(sweep, cells)

    def log_training(self, config: Mapping[str, Any], folder: Path) -> None:
        """Log the curves of trained modules, in the group of the model and the data they were trained with."""
        from btp.runner.tracking.wandb_training import track_training

        track_training(config, folder)
