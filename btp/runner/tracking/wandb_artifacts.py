"""W&B artifacts of a run: the calibration and the search that it used or made, and its result."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wandb
import yaml

KINDS = ("calibration", "search")
RESULT = (
    "run.json",
    "config.yaml",
    "samples.parquet",
    "trace.parquet",
    "layers.json",
    "cost.json",
    "report.html",
    "calibration.yaml",
    "search.yaml",
)


@dataclass(frozen=True)
class Source:
    """What the stages of a run come from.

    Attributes:
        kind: calibration | search.
        name: Name in W&B, one per model and identity; runs that share it share the artifact.
        path: the file that runs share, else the run's own copy.
        made_here: this run made it; false where an earlier one did.
        metadata: all but long lists.
    """

    kind: str
    name: str
    path: Path
    made_here: bool
    metadata: Mapping[str, Any]

    def describe(self) -> dict[str, Any]:
        """What a W&B run's config says of it."""
        return {"name": self.name, "identity": self.metadata["identity"], "made_here": self.made_here}

    def artifact(self) -> wandb.Artifact:
        """As W&B takes it."""
        made = wandb.Artifact(self.name, self.kind, metadata=dict(self.metadata))
        made.add_file(str(self.path), name=f"{self.kind}.yaml")
        return made


def sources(config: Mapping[str, Any], run: Path, state: Mapping[str, Any]) -> list[Source]:
    """The calibration and the search that a run's folder holds a copy of.

    Args:
        config: resolved.
        run: the run folder.
        state: run.json.
    """
    found = []
    for kind in KINDS:
        copy = run / f"{kind}.yaml"
        if copy.exists():
            content = yaml.safe_load(copy.read_text(encoding="utf-8"))
            shared = Path(config["output"]) / ".store" / "calibration" / f"{content['identity']}.yaml"
            metadata = {
                key: content[key] for key in ("identity", "model", "calibration", "kind", "made") if key in content
            }
            name = label(kind, config["model"]["name"], content["identity"])
            made_here = _time(content.get("made")) >= _time(state["started"])
            found.append(Source(kind, name, shared if shared.exists() else copy, made_here, metadata))
    return found


def settle(tracked: wandb.Run, source: Source) -> None:
    """Log what this run made; use what it found. Offline a use cannot be recorded: the run's config names it."""
    if source.made_here:
        tracked.log_artifact(source.artifact())
    elif not tracked.offline:
        try:
            tracked.use_artifact(f"{source.name}:latest")
        except (wandb.Error, ValueError):  # its maker did not log it, or has not yet
            tracked.log_artifact(source.artifact())


def log_result(tracked: wandb.Run, run: Path, state: Mapping[str, Any]) -> None:
    """Log what the run came to, as files that reports and tables are made from."""
    made = wandb.Artifact(label("result", run.name), "result", metadata={"identity": state["identity"]})
    for name in RESULT:
        if (run / name).exists():
            made.add_file(str(run / name), name=name)
    tracked.log_artifact(made)


def label(*words: str) -> str:
    """A name that W&B takes for an artifact: no signs but dots, dashes and underscores, 128 characters at most."""
    return re.sub(r"[^\w.-]+", "_", "-".join(words))[:128]


def _time(text: str | None) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text) if text else datetime.datetime.max.replace(tzinfo=datetime.UTC)
