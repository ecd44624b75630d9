"""Artifacts of calibrations and searches: yaml files that say where they come from."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from btp.models.loading.load import Loaded
from btp.results.atomic import write_text
from btp.results.disk import make_folder
from btp.results.shapes import TEXT, Shape, keys, read_yaml
from btp.results.shipped import versions
from btp.runner.devices import Machine
from btp.runner.evaluation.answer_store import held

PACKAGES = ("torch", "transformers")
HEAD = keys(identity=TEXT, model=keys(name=TEXT, checkpoint=TEXT))


def origin(config: Mapping[str, Any], loaded: Loaded, checkpoint: str, identity: str) -> dict[str, Any]:
    """The head of an artifact: its name, and the model and pictures it was made with.

    Args:
        config: Config of the run, resolved.
        checkpoint: identity of the model.
        identity: Identity of the artifact.
    """
    return {
        "identity": identity,
        "model": {"name": config["model"]["name"], "checkpoint": checkpoint, "layers": loaded.host.num_layers},
        "calibration": dict(config["calibration"]),
    }


def made(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """The foot of an artifact: versions and time."""
    return {
        "versions": versions(packages),
        "made": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def write_artifact(path: Path, artifact: Mapping[str, Any]) -> None:
    """Write it whole or not at all."""
    make_folder(path.parent)
    write_text(path, yaml.safe_dump(dict(artifact), sort_keys=False))


def read_artifact(path: Path, what: str, key: str, shape: Shape, checkpoint: str, advice: str) -> dict[str, Any]:
    """Read an artifact, and refuse one that is broken or of another model.

    Args:
        what: calibration or search.
        key: config key that may name the file.
        shape: Shape that it must have beside `HEAD`.
        checkpoint: identity of the run's model.
        advice: what to do.

    Raises:
        ValueError: says which file, what is wrong and what to do.
    """
    if not path.is_file():
        raise ValueError(f"{key} is {path}, but there is no such file. {advice}")
    try:
        artifact = read_yaml(path, HEAD, advice)
        model = artifact["model"]
        if model["checkpoint"] == checkpoint:
            return read_yaml(path, shape, advice)
    except ValueError as error:
        raise ValueError(f"the {what} artifact {error}") from None
    raise ValueError(
        f"the {what} artifact {path} was made for model {model['name']!r} (checkpoint "
        f"{model['checkpoint']}), but this run's checkpoint is {checkpoint}. {advice}"
    )


@contextmanager
def artifact_named(path: Path, what: str, advice: str) -> Iterator[None]:
    """Name the artifact in whatever is refused inside, which was read from it.

    Raises:
        ValueError: as it was raised, with the file in front and the advice behind.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"the {what} artifact {path} is broken: {str(error).rstrip('.')}. {advice}") from None


def find_or_make(
    path: Path, make: Callable[[], Mapping[str, Any]], shape: Shape, what: str, machine: Machine, resume: bool
) -> None:
    """Make an artifact where it is not there yet, or broken; one process does, the others wait.

    Args:
        path: Place of the artifact.
        make: makes it.
        shape: Shape that it has beside `HEAD`; what has another is broken.
        what: is computed, for who has to wait.
        resume: false makes it anew.
    """
    if machine.leads:
        with held(path.with_suffix(".lock"), what):
            if not (resume and _is_whole(path, shape)):
                write_artifact(path, make())
    machine.sync()


def _is_whole(path: Path, shape: Shape) -> bool:
    """Whether there is an artifact to read; what a full disk or a power cut left is made again."""
    try:
        read_yaml(path, HEAD, "")
        read_yaml(path, shape, "")
    except ValueError:
        return False
    return True
