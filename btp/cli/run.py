"""Main command: composes with Hydra, checks the config, hands runs to workers, and compares those of a sweep.

No torch here, so that --help and errors come at once. Under `-m` a launcher may run the cells in this process, beside
it or on other machines; how they ended is read from the sweep's folder.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from btp.cli.command_words import hydra_words, quoted
from btp.cli.overrides import MANY, check_overrides, experiment_of, planned_cells, sweep_folder, with_sweep
from btp.cli.run_cell import end_workers, run_cell
from btp.report.terminal import settle_output
from btp.results.shipped import CONF
from btp.runner.messages import one_line, say
from btp.runner.pruner_lists import name_lists
from btp.runner.sweeps.cells import Cells
from btp.runner.sweeps.summary import Sweep
from btp.runner.workers.launch import FAILED, STOPPED

COMPLETION = {"-sc", "--shell-completion"}  # the rest of the line is a shell's, and Hydra's own
MODES = {
    "run": ("-r", "--run"),
    "run a sweep": MANY,
    "show the config": ("-c", "--cfg"),
    "say what Hydra knows": ("-i", "--info"),
}  # what Hydra can be asked for, one at a time


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def app(config: DictConfig) -> None:
    """What Hydra runs for each composed config; a launcher may do so in another process."""
    outcome = run_cell(config)
    if outcome.code and HydraConfig.get().mode == RunMode.RUN:
        sys.exit(outcome.code)


def main() -> None:
    """Run `run.py`'s command line; exit code 1 where a run failed, unless only its budget was out of reach."""
    settle_output()
    try:
        _run(sys.argv[1:])
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        sys.exit(STOPPED)
    finally:
        end_workers()


def _run(words: list[str]) -> None:
    if COMPLETION & set(words):
        app()
        return
    try:
        check_mode(words)
        words = hydra_words(CONF, name_lists(words))
    except ValueError as error:
        say(error)
        sys.exit(FAILED)
    many = any(flag in words for flag in MANY)
    sys.argv[1:] = words
    check_overrides(CONF, words)
    if many and "--cfg" not in words and "-c" not in words:
        sys.exit(_sweep(words))
    app()


def check_mode(words: Sequence[str]) -> None:
    """Refuse a command line that asks for two things at once.

    Raises:
        ValueError: Two flags that say what to do.
    """
    given = {what: word for word in words for what, flags in MODES.items() if word.partition("=")[0] in flags}
    if len(given) > 1:
        (one, first), (other, second) = list(given.items())[:2]
        raise ValueError(
            f"{first} asks to {one}, {second} to {other}: only one can be done at a time. Drop one of them; a config "
            "is shown for one cell, with that cell's own words."
        )


def _sweep(words: list[str]) -> int:
    """Run all cells and compare them; returns the exit code."""
    experiment = experiment_of(CONF, words)
    study = experiment.study and {"name": experiment.name, **experiment.study}
    try:
        folder = sweep_folder(CONF, words)
        cells = Cells(folder)
        cells.open(sys.argv[1:], study, planned_cells(CONF, words))
    except (ValueError, OSError) as error:
        say(one_line(error, Path.cwd()))
        return FAILED
    words = [word for word in with_sweep(CONF, words) if not word.startswith("hydra.sweep.dir=")]
    sys.argv[1:] = [*words, quoted("hydra.sweep.dir", folder)]
    try:
        with _deaths_noted():
            app()
    except SystemExit:
        cells.withdraw()
        raise
    return Sweep(folder).end()


@contextmanager
def _deaths_noted() -> Iterator[None]:
    """Let submitit's launchers go on where a job left no result: the sweep's folder says which cell it was."""
    try:
        import submitit
        from submitit.core.utils import FailedJobError, UncompletedJobError
    except ImportError:
        yield
        return
    results = submitit.Job.results

    def or_nothing(job: submitit.Job) -> list[Any]:
        from hydra.core.utils import JobReturn, JobStatus

        try:
            return results(job)
        except (UncompletedJobError, FailedJobError) as error:
            print(f"job {job.job_id} left no result: {str(error).splitlines()[0]}", file=sys.stderr)
            return [JobReturn(status=JobStatus.COMPLETED)]

    submitit.Job.results = or_nothing  # type: ignore[method-assign]
    try:
        yield
    finally:
        submitit.Job.results = results  # type: ignore[method-assign]
