"""Names results by what makes them: a hash of config, code and checkpoint."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from btp.models.find import checkpoint_folders

PACKAGE = Path(__file__).resolve().parents[1]
MODEL = ("weights", "adapter", "config", "processor", "dtype", "attention", "quantize", "trust_remote_code")


def digest(*parts: Any) -> str:
    """A short hash of JSON-able `parts`; key order does not matter."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def code(*names: str) -> str:
    """A hash of the sources of btp's packages or modules `names`, such as "core" or "pruners/btp.py".

    Results must not outlive the code that made them: who edits a method and runs again gets new answers.
    """
    files: list[Path] = []
    for name in names:
        path = PACKAGE / name
        files += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return digest([(f.relative_to(PACKAGE).as_posix(), f.read_text()) for f in files])


def model_identity(model: Mapping[str, Any]) -> dict[str, Any]:
    """What of a model's config changes its answers, beside the checkpoint: not where it lies or is computed."""
    return {key: model[key] for key in MODEL}


def method_code(target: str | None) -> str:
    """The hash of the file that defines the class `target` (a dotted path) and of the ops it may use."""
    if target is None:
        return ""
    import importlib.util

    spec = importlib.util.find_spec(target.rsplit(".", 1)[0])
    if spec is None or spec.origin is None:
        raise ValueError(f"pruner.method._target_ is {target}, but no such module is found. Correct the path.")
    return digest(Path(spec.origin).read_text(), code("ops"))


def code_of(method: Mapping[str, Any] | None) -> str:
    """As `method_code`, for a method's config: of its class and of every class that its settings name."""
    found: list[str] = []

    def walk(node: Any) -> None:
        if isinstance(node, Mapping):
            found.extend([node["_target_"]] if "_target_" in node else [])
            for value in node.values():
                walk(value)

    walk(method)
    return digest([method_code(target) for target in found]) if found else ""


def checkpoint(folder: Path | None, extra: Iterable[Any] = ()) -> str:
    """A hash of a checkpoint folder: small files whole, large ones by size and both ends."""
    if folder is None:
        return digest(*extra)
    parts: list[Any] = list(extra)
    for file in (p for part in checkpoint_folders(folder) for p in sorted(part.iterdir())):
        if not file.is_file() or file.suffix == ".md":
            continue
        size = file.stat().st_size
        with file.open("rb") as f:
            head = f.read(1 << 20)
            f.seek(max(size - (1 << 20), 0))
            tail = f.read()
        parts.append((file.name, size, hashlib.sha256(head + tail).hexdigest()))
    return digest(*parts)
