"""What a calibration or a search leaves for later runs: a yaml file that says where it comes from."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from btp.models.loading.load import Loaded
from btp.results.atomic import write_text
from btp.results.disk import make_folder
from btp.runner.devices import Machine
from btp.runner.evaluation.answer_store import held

PACKAGES = ("btp", "torch", "transformers")


def origin(config: Mapping[str, Any], loaded: Loaded, checkpoint: str, identity: str) -> dict[str, Any]:
    """The head of an artefact: its name, and the model and pictures it was made with.

    Args:
        config: of the run, resolved.
        checkpoint: identity of the model.
        identity: of the artefact.
    """
    return {
        "identity": identity,
        "model": {"name": config["model"]["name"], "checkpoint": checkpoint, "layers": loaded.host.num_layers},
        "calibration": dict(config["calibration"]),
    }


def made(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """The foot of an artefact: versions and time."""
    return {
        "versions": {p: version(p) for p in packages},
        "made": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def write_artefact(path: Path, artefact: Mapping[str, Any]) -> None:
    """Write it whole or not at all."""
    make_folder(path.parent)
    write_text(path, yaml.safe_dump(dict(artefact), sort_keys=False))


def read_artefact(
    path: Path, what: str, key: str, required: Sequence[str], checkpoint: str, advice: str
) -> dict[str, Any]:
    """Read an artefact, and refuse one that is broken or of another model.

    Args:
        what: calibration or search.
        key: config key that may name the file.
        required: keys it must have, `model` among them.
        checkpoint: identity of the run's model.
        advice: what to do.

    Raises:
        ValueError: says which file, what is wrong and what to do.
    """
    try:
        artefact = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ValueError(f"{key} is {path}, which cannot be read: {error.strerror}. {advice}") from None
    except yaml.YAMLError:
        raise ValueError(f"the {what} artefact {path} is corrupt: it is not YAML. {advice}") from None
    missing = [name for name in required if not isinstance(artefact, dict) or name not in artefact]
    if missing:
        raise ValueError(f"the {what} artefact {path} is corrupt: it lacks {', '.join(missing)}. {advice}")
    model = artefact["model"]
    if model["checkpoint"] != checkpoint:
        raise ValueError(
            f"the {what} artefact {path} was made for model {model['name']!r} (checkpoint "
            f"{model['checkpoint']}), but this run's checkpoint is {checkpoint}. {advice}"
        )
    return artefact


def find_or_make(path: Path, make: Callable[[], Mapping[str, Any]], what: str, machine: Machine, resume: bool) -> None:
    """Make an artefact where it is not there yet, or broken; one process does, the others wait.

    Args:
        path: where it lies, or will.
        make: makes it.
        what: is computed, for who has to wait.
        resume: false makes it anew.
    """
    if machine.leads:
        with held(path.with_suffix(".lock"), what):
            if not (resume and _is_whole(path)):
                write_artefact(path, make())
    machine.sync()


def _is_whole(path: Path) -> bool:
    """Whether there is an artefact to read; what a full disk or a power cut left is made again."""
    try:
        return isinstance(yaml.safe_load(path.read_text()), dict)
    except (OSError, ValueError, yaml.YAMLError):
        return False
