"""Identity and folder of a run, by what changes its result. No torch, so that a finished run is recognised at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from btp.models.loading.checkpoint import find_checkpoint
from btp.results.status import is_finished
from btp.runner.datasets import with_contents
from btp.runner.harness.settings import shared_part
from btp.runner.identity import code, code_of, digest, model_checkpoint, model_identity
from btp.runner.model_yamls import check_family
from btp.runner.pruner_lists import method_of
from btp.runner.sources import modules_of
from btp.runner.tracking.tracker import tracker_of

WORKER = "btp.runner.run"  # computes runs
FREE = (
    "output",
    "resume",
    "debug",
    "cache",
    "cache_gib",
    "logger",
    "trainer",
    "command",
    "overlays",
    "study",
    "action",
)


@dataclass(frozen=True)
class Named:
    """A run before it is computed.

    Attributes:
        config: resolved, with what local files hold.
        source: folder of the checkpoint; None where the yaml's architecture is built.
        checkpoint: what the checkpoint holds, as a hash.
        identity: Identity of all that changes the run's result.
    """

    config: Mapping[str, Any]
    source: Path | None
    checkpoint: str
    identity: str

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Named:
        """Look at checkpoint, code and files.

        Raises:
            ValueError: one of them is missing or broken, or the checkpoint is of another family.
        """
        config = with_contents(config)
        source = find_checkpoint(config["model"])
        check_family(config["model"], source)
        held = model_checkpoint(config["model"], source)
        return cls(config, source, held, run_identity(config, held))

    @property
    def folder(self) -> Path:
        """Of the run."""
        names = [self.config[group]["name"] for group in ("model", "pruner", "task")]
        return Path(self.config["output"]) / "-".join([*names, self.identity[:8]])


def run_identity(config: Mapping[str, Any], checkpoint: str) -> str:
    """Names a run by what changes its result: not by where it is logged or on what it ran."""
    what = {k: v for k, v in config.items() if k not in FREE}
    what["calibration"] = {k: v for k, v in config["calibration"].items() if k != "batch"}  # as trainer.batch
    if _own_stages(config):
        what.pop("stages", None)  # which nothing reads
    what["model"] = {"name": config["model"]["name"], "example": config["model"]["example"]}
    what["model"] |= model_identity(config["model"])
    if not any(part.get("weights") == "auto" for part in _parts(config)):
        what.pop("training", None)
    what["modules"] = [_modules(part["weights"]) for part in _parts(config) if "weights" in part]
    methods = [config["pruner"], *(config.get("controls") or {}).values()]
    of_methods = [code_of(method) for pruner in methods for method in (method_of(pruner), pruner.get("slots"))]
    named = modules_of(config["task"], config["calibration"], {"_target_": config["model"]["adapter"]})
    of_task = shared_part(config["task"])  # and of files of another harness's tasks
    return digest(what, checkpoint, code(WORKER, *named), of_task, of_methods)


def _parts(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Every pruner of a run: its own, or what that is made of, and the controls."""
    pruner = config["pruner"]
    return [*(pruner.get("parts") or {"": pruner}).values(), *(config.get("controls") or {}).values()]


def _modules(weights: str) -> str:
    """What names the modules of `pruner.weights`: the digest on the card of a folder."""
    card = Path(weights) / "trained.yaml"
    return digest(card.read_text(encoding="utf-8")) if card.is_file() else weights


def is_settled(config: Mapping[str, Any]) -> Path | None:
    """The folder of a run that is finished and logged, so that nothing is left to do for it; None for any other.

    Args:
        config: resolved, as a worker would get it.
    """
    if not config["resume"]:
        return None
    try:
        run = Named.of(json.loads(json.dumps(config)))
    except Exception:  # whatever it is, the run itself says it
        return None
    logged = tracker_of(config["logger"]).is_logged(run.folder, run.identity)
    return run.folder if logged and is_finished(run.folder) else None


def _own_stages(config: Mapping[str, Any]) -> bool:
    """Whether no arm takes the stages that the schedule group makes."""
    kind, pruner = config["schedule"]["kind"], config["pruner"]
    parts = (pruner.get("parts") or {"": pruner}).values()
    return kind == "paper" or (kind == "auto" and all(part["schedule"] is not None for part in parts))
