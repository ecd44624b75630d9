"""Identities of results: hashes of config, code and checkpoint."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from btp.models.loading.checkpoint import checkpoint_folders
from btp.runner.sources import ROOT, files_behind, modules_of, named_files

END, STRIDE, STRIP = 1 << 20, 1 << 21, 1 << 12  # bytes of a file of weights that stand for it
MODEL = ("weights", "adapter", "config", "processor", "dtype", "attention", "quantize", "trust_remote_code")


def digest(*parts: Any) -> str:
    """A short hash of JSON-able `parts`; key order does not matter."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def code(*modules: str) -> str:
    """A hash of the sources that make a result: `modules`, all that they import, and the packages named in configs.

    Results must not outlive the code that made them: who edits a method and runs again gets new answers.
    """
    return _hash(frozenset({*named_files(), *files_behind(modules)}))


@cache
def _hash(files: frozenset[Path]) -> str:
    return digest([(_name(file), _content(file)) for file in sorted(files)])


@cache
def _content(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _name(file: Path) -> str:
    """Of a file: where it lies in the project, so that another clone finds the same results."""
    return file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else file.name


def model_identity(model: Mapping[str, Any]) -> dict[str, Any]:
    """What of a model's config changes its answers, beside the checkpoint: not where it lies or is computed."""
    return {key: model[key] for key in MODEL} | ({"chat": model["chat"]} if "chat" in model else {})


def code_of(method: Mapping[str, Any] | None) -> str:
    """The hash of a method's sources: of its class, of every class that its settings name, and what these import.

    Raises:
        ValueError: a class is in no module that can be found.
    """
    modules = modules_of(method)
    for module in modules:
        if not files_behind([module]):
            raise ValueError(
                f"pruner.method._target_ is in module {module!r}, but no such module is found. Correct the path."
            )
    return _hash(frozenset(files_behind(modules))) if modules else ""


def checkpoint(folder: Path | None, extra: Iterable[Any] = ()) -> str:
    """A hash of a checkpoint folder: small files whole, large ones by `_sample`."""
    if folder is None:
        return digest(*extra)
    parts: list[Any] = list(extra)
    for file in (p for part in checkpoint_folders(folder) for p in sorted(part.iterdir())):
        if file.is_file() and file.suffix != ".md":
            parts.append((file.name, file.stat().st_size, _sample(file)))
    return digest(*parts)


def model_checkpoint(model: Mapping[str, Any], folder: Path | None) -> str:
    """The identity of a model's checkpoint: its folder, and the family that its config names."""
    return checkpoint(folder, [model["config"]])


def pictures(processor: Any, architecture: Any) -> str | None:
    """A hash of what a vision model is shown of a picture, and how it is cut; None for models that cut none.

    It names modules that read pixels alone, which go with every model of the same hash.

    Args:
        processor: makes its `pixel_values`.
        architecture: config of the model.
    """
    patch, width = (getattr(architecture, key, None) for key in ("patch_size", "hidden_size"))
    if patch is None or width is None or getattr(processor, "size", None) is None:
        return None
    size = {key: value for key, value in dict(processor.size).items() if value is not None}
    return digest(size, list(processor.image_mean), list(processor.image_std), patch, width)


def _sample(file: Path) -> str:
    """A hash of both ends of a file and of a strip in every STRIDE between: a matrix of a large model has many.

    Adapters and fine-tunes of single layers leave both ends of a file of weights as they were.
    """
    size, found = file.stat().st_size, hashlib.sha256()
    with file.open("rb") as f:
        found.update(f.read(END))
        for at in range(END, size - END, STRIDE):
            f.seek(at)
            found.update(f.read(STRIP))
        f.seek(max(size - END, END))
        found.update(f.read())
    return found.hexdigest()
