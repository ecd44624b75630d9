"""One run from a composed config, in whichever process a launcher has it: alone, in a sweep, on a cluster's node.

No torch here, so that errors come at once.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from btp.cli.check_config import check_config, settled
from btp.cli.values import resolved
from btp.results.command_line import as_line
from btp.results.disk import CannotWrite, make_folder
from btp.results.shipped import PROGRAM
from btp.runner.messages import one_line, say
from btp.runner.pruner_lists import as_typed
from btp.runner.run_identity import is_settled
from btp.runner.sweeps.cells import FINISHED, Cells
from btp.runner.tracking.groups import grouped
from btp.runner.workers.launch import FAILED, Outcome, Workers

_WORKERS: list[Workers] = []  # of this process: the cells that a launcher gives it share them


def run_cell(config: DictConfig) -> Outcome:
    """Compute one run; never raises for a run that fails, so that the other cells of a sweep go on.

    Args:
        config: composed, as Hydra hands it to a task.

    Raises:
        KeyboardInterrupt: the user stopped it.
    """
    hydra = HydraConfig.get()
    overrides = [as_typed(word) for word in hydra.overrides.task]
    if hydra.mode != RunMode.MULTIRUN:
        return _compute(config, overrides)
    words, number = as_line(overrides), hydra.job.num
    print(f"\n[{number}] {words}", flush=True)
    _share_threads(hydra.launcher)
    try:
        with Cells(Path(hydra.sweep.dir)).running(number, words) as note:
            was_finished = note.before.state == FINISHED and note.before.words == words
            note.outcome = _compute(config, overrides, Path(hydra.sweep.dir), was_finished)
            return note.outcome
    except OSError as error:  # the cell cannot be noted in the sweep's folder
        message = one_line(error, Path(hydra.sweep.dir))
        say(message)
        return Outcome(FAILED, message)


def end_workers() -> None:
    """Let the worker processes of this process end."""
    while _WORKERS:
        _WORKERS.pop().close()


def _workers(serving: bool) -> Workers:
    if not _WORKERS:
        _WORKERS.append(Workers(serving=serving))
        atexit.register(end_workers)
    return _WORKERS[0]


def _compute(
    config: DictConfig, overrides: list[str], sweep: Path | None = None, was_finished: bool = False
) -> Outcome:
    """Hand a run to a worker, unless it `was_finished` as this cell before and still is what the words ask for."""
    try:
        asked = settled(resolved(config), overrides)
        check_config(asked)
        asked.pop("study", None)  # of the sweep: a run may be a cell of several
        spool = Path(asked["output"]) / ".store" / "requests"
        make_folder(spool)
        if sweep is not None:
            asked["logger"] = grouped(asked["logger"], sweep)
    except (ValueError, OSError) as error:
        if config.get("debug") is True:
            raise
        return _failed(error, config)
    asked["command"] = as_line([*PROGRAM.split(), *overrides])
    run = is_settled(asked) if was_finished else None
    if run is not None:
        print(f"this run is finished: {run} (resume=false computes it anew)", flush=True)
        return Outcome(0, folder=str(run))
    try:
        return _workers(serving=sweep is not None).run(spool, asked)
    except CannotWrite as error:
        return _failed(error, config)


def _failed(error: Exception, config: DictConfig) -> Outcome:
    message = one_line(error, Path(str(config.get("output"))))
    say(message)
    return Outcome(FAILED, message)


def _share_threads(launcher: Mapping[str, Any]) -> None:
    """Cells that a launcher runs side by side on this machine share its cores."""
    beside = launcher.get("n_jobs")
    if isinstance(beside, int) and beside != 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        share = 1 if beside < 1 else max(1, cores // beside)
        os.environ.setdefault("OMP_NUM_THREADS", str(share))
