"""The Hydra side: composes, refuses what is plainly wrong, hands runs to workers, and compares those of a sweep.

No torch here, so that --help and errors come at once.
"""

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from btp.runner.compositions import as_typed, name_lists
from btp.runner.launch import FAILED, STOPPED, Outcome, Workers
from btp.runner.overrides import check_overrides
from btp.runner.preflight import check_config
from btp.runner.sweep import Sweep

CONF = Path(__file__).resolve().parents[2] / "conf"


def main() -> None:
    """Run `run.py`'s command line; exit code 1 where a run failed, unless only its budget was out of reach."""
    sys.argv[1:] = _translated(sys.argv[1:])
    check_overrides(CONF, sys.argv[1:])
    workers: list[Workers] = []
    sweeps: list[Sweep] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def app(config: DictConfig) -> None:
        hydra_config = HydraConfig.get()
        many = hydra_config.mode == RunMode.MULTIRUN
        if not workers:
            workers.append(Workers(serving=many))
            sweeps.append(Sweep(Path(hydra_config.sweep.dir)))
        overrides = [as_typed(word) for word in hydra_config.overrides.task]
        if many:
            print(f"\n[{hydra_config.job.num}] {' '.join(overrides)}", flush=True)
        outcome = launch(config, overrides, workers[0])
        sweeps[0].add(" ".join(overrides), outcome)
        if not many and outcome.code:
            sys.exit(outcome.code)

    try:
        app()
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        sys.exit(STOPPED)
    finally:
        for worker in workers:
            worker.close()
    if workers and workers[0].serving:
        sys.exit(sweeps[0].end())


def launch(config: DictConfig, overrides: list[str], workers: Workers) -> Outcome:
    """Have one run computed.

    Args:
        config: composed.
        overrides: the words of its command line.
        workers: who computes.
    """
    try:
        resolved = OmegaConf.to_container(config, resolve=True)
        if resolved["budget"]["tokens"] is not None and not any(o.startswith("budget.share=") for o in overrides):
            resolved["budget"]["share"] = None  # the default share gives way to tokens that were asked for
        check_config(resolved)
        spool = Path(resolved["output"]) / ".store" / "requests"
        spool.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        if config.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return Outcome.of(error)
    resolved["command"] = " ".join(["python", "run.py", *overrides])
    request = spool / f"{os.getpid()}-{HydraConfig.get().job.get('num', 0) if overrides else 0}.json"
    return workers.run(request, resolved)


def _translated(words: list[str]) -> list[str]:
    try:
        return name_lists(words)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(FAILED)
