"""Search artifacts: finds that of an earlier search, or has it made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from btp.results.shapes import TEXT, Shape, keys
from btp.runner.calibration.artifact import find_or_make, read_artifact
from btp.runner.devices import Machine
from btp.runner.identity import code, code_of, model_identity
from btp.runner.sources import modules_of
from btp.runner.targets import TARGET
from btp.tasks.shown import short

NAME = "pruner.search.artifact"
WHAT = "search"
ADVICE = "Set pruner.search.artifact=null to search anew, or name the search.yaml of another run."


def find_search(
    kind: str,
    settings: Mapping[str, Any],
    identity: str,
    shape: Shape,
    config: Mapping[str, Any],
    checkpoint: str,
    store: Path,
    machine: Machine,
    make: Callable[[], Mapping[str, Any]],
) -> dict[str, Any]:
    """The artifact that the settings name, that an earlier run left, or that is made now.

    Args:
        kind: Kind of search.
        settings: the pruner's `search` node.
        identity: names the search by all that changes its outcome.
        shape: Shape of the artifact, beside what those of all searches have.
        config: Config of the run, resolved.
        checkpoint: identity of the model.
        store: Folder of the artifacts that runs share.
        make: makes it.

    Raises:
        ValueError: the named artifact is broken, or of another model or kind.
    """
    named = settings.get("artifact")
    path = Path(named) if named is not None else home(store, identity)
    if named is None:
        find_or_make(path, make, shape, "the search", machine, config["resume"])
    found = read_artifact(path, WHAT, NAME, keys(kind=TEXT), checkpoint, ADVICE)
    if found["kind"] != kind:
        raise ValueError(f"the search artifact {path} is of kind {found['kind']}, not {kind}. {ADVICE}")
    return read_artifact(path, WHAT, NAME, shape, checkpoint, ADVICE)


def found_settings(artifact: Mapping[str, Any], method: Mapping[str, Any], file: str) -> dict[str, float]:
    """The settings that a search found: plain numbers for settings that the method has, since files are no code.

    Args:
        artifact: Artifact as a search.yaml holds it, whoever wrote it.
        method: Method of the pruner's config.
        file: File that the artifact is from, for messages.

    Raises:
        ValueError: it names anything else.
    """
    found = artifact["method"]
    if not isinstance(found, Mapping):
        raise _no_search(file, f"its method is {short(repr(found))}, not settings with numbers")
    for name, value in found.items():
        if name not in method or str(name).startswith("_"):
            raise _no_search(file, f"its method holds {short(str(name))}, which is no setting of {method[TARGET]}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise _no_search(file, f"its method.{name} is {short(repr(value))}, which is no number")
    return dict(found)


def found_stages(artifact: Mapping[str, Any], file: str) -> list[dict[str, Any]]:
    """The stages that a search found: settings with a text or a number each.

    Raises:
        ValueError: they are anything else.
    """
    stages = artifact["schedule"]
    if not isinstance(stages, list) or not all(isinstance(stage, Mapping) for stage in stages):
        raise _no_search(file, f"its schedule is {short(repr(stages))}, not a list of stages")
    for at, stage in enumerate(stages):
        for name, value in stage.items():
            if not isinstance(value, str | int | float | None):
                raise _no_search(file, f"its schedule.{at}.{name} is {short(repr(value))}, neither a text nor a number")
    return [dict(stage) for stage in stages]


def _no_search(file: str, why: str) -> ValueError:
    return ValueError(f"the search artifact {file} cannot be used: {why}. {ADVICE}")


def home(store: Path, identity: str) -> Path:
    """Where the artifact of a search lies."""
    return store / "calibration" / f"{identity}.yaml"


def search_identity(
    module: str, config: Mapping[str, Any], checkpoint: str, pruner: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[Any]:
    """What changes the outcome of any search, to be digested with what changes the one at hand, made by `module`."""
    model = model_identity(config["model"])
    data = {k: v for k, v in config["calibration"].items() if k not in ("artifact", "batch")}
    asked = {k: v for k, v in settings.items() if k != "artifact"}
    sources = code(module, *modules_of(data, {"_target_": config["model"]["adapter"]}))
    return [model, checkpoint, data, asked, pruner["method"], code_of(pruner["method"]), sources]
