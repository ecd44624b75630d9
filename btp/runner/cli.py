"""The Hydra side: composes, refuses what is plainly wrong, writes the run folder and starts the worker.

No torch here, so that --help and errors come at once. The worker is a process of its own, without Hydra:
Lightning may start more processes in it, which under a sweep would run the whole sweep again.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from btp.runner.overrides import check_overrides
from btp.runner.preflight import check_config

CONF = Path(__file__).resolve().parents[2] / "conf"
FAILED = 1


def main() -> None:
    """Run `run.py`'s command line; exit code 1 where any run failed."""
    check_overrides(CONF, sys.argv[1:])
    failures: list[str] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def app(config: DictConfig) -> None:
        if launch(config):
            failures.append(" ".join(HydraConfig.get().overrides.task))
            if HydraConfig.get().mode != RunMode.MULTIRUN:
                sys.exit(FAILED)

    app()
    if failures:
        print(f"\n{len(failures)} run(s) failed:", *failures, sep="\n  ", file=sys.stderr)
        sys.exit(FAILED)


def launch(config: DictConfig) -> int:
    """Start one run in a worker process and wait for it.

    Returns:
        The worker's exit code.
    """
    try:
        overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
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
        return FAILED
    resolved["command"] = " ".join(["python", "run.py", *overrides])
    request = spool / f"{os.getpid()}-{HydraConfig.get().job.get('num', 0) if overrides else 0}.json"
    request.write_text(json.dumps(resolved))
    try:
        return subprocess.run([sys.executable, "-m", "btp.runner.worker", str(request)], check=False).returncode
    except KeyboardInterrupt:
        return 130
    finally:
        request.unlink(missing_ok=True)
