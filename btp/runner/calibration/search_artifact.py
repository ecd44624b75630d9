"""Finds what an earlier search left, or lets it be made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from btp.results.shapes import TEXT, Shape, keys
from btp.runner.calibration.artifact import find_or_make, read_artefact
from btp.runner.devices import Machine
from btp.runner.identity import code, code_of, model_identity
from btp.runner.sources import modules_of

NAME = "pruner.search.artefact"
WHAT = "search"
ADVICE = "Set pruner.search.artefact=null to search anew, or name the search.yaml of another run."


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
    """The artefact that the settings name, that an earlier run left, or that is made now.

    Args:
        kind: of search.
        settings: the pruner's `search` node.
        identity: names the search by all that changes its outcome.
        shape: of the artefact, beside what those of all searches have.
        config: of the run, resolved.
        checkpoint: identity of the model.
        store: where artefacts that runs share lie.
        make: makes it.

    Raises:
        ValueError: the named artefact is broken, or of another model or kind.
    """
    named = settings.get("artefact")
    path = Path(named) if named is not None else home(store, identity)
    if named is None:
        find_or_make(path, make, shape, "the search", machine, config["resume"])
    found = read_artefact(path, WHAT, NAME, keys(kind=TEXT), checkpoint, ADVICE)
    if found["kind"] != kind:
        raise ValueError(f"the search artefact {path} is of kind {found['kind']}, not {kind}. {ADVICE}")
    return read_artefact(path, WHAT, NAME, shape, checkpoint, ADVICE)


def home(store: Path, identity: str) -> Path:
    """Where the artefact of a search lies."""
    return store / "calibration" / f"{identity}.yaml"


def search_identity(
    module: str, config: Mapping[str, Any], checkpoint: str, pruner: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[Any]:
    """What changes the outcome of any search, to be digested with what changes the one at hand, made by `module`."""
    model = model_identity(config["model"])
    data = {k: v for k, v in config["calibration"].items() if k not in ("artefact", "batch")}
    asked = {k: v for k, v in settings.items() if k != "artefact"}
    sources = code(module, *modules_of(data, {"_target_": config["model"]["adapter"]}))
    return [model, checkpoint, data, asked, pruner["method"], code_of(pruner["method"]), sources]
