"""Tracker protocol: logs finished runs and sweeps from their folders. A new one is a class and a yaml."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from btp.runner.sweeps.cells import Cell

DEFAULT = "btp.runner.tracking.wandb_tracker.WandbTracker"  # of sweeps begun before yamls named their tracker


class Tracker(Protocol):
    """Logs what run folders hold. Made with the resolved logger group; imports its library in the methods alone.

    Attributes:
        names: What `logger.name` may be in its yamls.
    """

    names: tuple[str, ...]

    def check(self) -> None:
        """Look at the settings before anything is computed.

        Raises:
            ValueError: a setting or a login is missing; the message says what to do.
        """
        ...

    def is_logged(self, run: Path, identity: str) -> bool:
        """Whether a finished run needs no logging any more."""
        ...

    def log_run(self, config: Mapping[str, Any], run: Path) -> None:
        """Log a finished run, unless an earlier start did; what goes wrong is printed and does not touch the run."""
        ...

    def log_sweep(self, sweep: Path, cells: Sequence[Cell]) -> None:
        """Log a sweep as a whole."""
        ...

    def log_training(self, config: Mapping[str, Any], folder: Path) -> None:
        """Log the curves of finished modules from their folder: trained.yaml, curve.jsonl."""
        ...


class NoTracker:
    """Logs nothing."""

    names = ("none",)

    def __init__(self, logger: Mapping[str, Any]) -> None:
        pass

    def check(self) -> None:
        """Nothing is needed."""

    def is_logged(self, run: Path, identity: str) -> bool:
        """True: nothing is left to do."""
        return True

    def log_run(self, config: Mapping[str, Any], run: Path) -> None:
        """Log nothing."""

    def log_sweep(self, sweep: Path, cells: Sequence[Cell]) -> None:
        """Log nothing."""

    def log_training(self, config: Mapping[str, Any], folder: Path) -> None:
        """Log nothing."""


def tracker_of(logger: Mapping[str, Any]) -> Tracker:
    """The tracker that a logger group names.

    Raises:
        ValueError: There is no such class, or the logger's name is another's.
    """
    path = logger.get("tracker", DEFAULT)
    module, _, name = path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise ValueError(
            f"logger.tracker is {path!r}, which is no class that can be imported. Name one as module.Class; the yamls "
            "in conf/logger name theirs."
        ) from None
    if logger["name"] not in kind.names:
        names = " or ".join(kind.names)
        raise ValueError(
            f"logger.name is {logger['name']!r}, but logger.tracker is {path}, which goes by {names}. "
            "Choose a tracker as a whole with logger=NAME, which is a yaml in conf/logger."
        )
    return kind(logger)
