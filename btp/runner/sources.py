"""Which source files make a result: found by following imports, so that no list of files has to be kept."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NAMED = (
    "core",
    "engine",
    "models",
    "ops",
    "schedules",
    "tasks",
)  # packages whose modules configs and checkpoints name as well
SHOWN = "btp.report"  # reads results and makes none
INSTALLED = ("site-packages", "dist-packages")

_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(?P<dots>\.*)(?P<base>[\w.]*)[ \t]+import[ \t]+(?P<names>\([^)]*\)|[^\n]+)"
    r"|import[ \t]+(?P<plain>[^\n]+))",
    re.MULTILINE,
)
_REMARK = re.compile(r"#[^\n]*|[ \t]as[ \t]+\w+")


def modules_of(*nodes: Any) -> tuple[str, ...]:
    """Modules of the classes that config nodes name by `_target_`, however deep, in order."""
    found: dict[str, None] = {}

    def walk(node: Any) -> None:
        if isinstance(node, Mapping):
            if isinstance(node.get("_target_"), str):
                found[node["_target_"].rpartition(".")[0]] = None
            for value in node.values():
                walk(value)
        elif isinstance(node, list | tuple):
            for value in node:
                walk(value)

    for node in nodes:
        walk(node)
    return tuple(found)


def files_behind(modules: Iterable[str]) -> list[Path]:
    """The files of `modules` and of all that these import, sorted.

    Followed are modules of this project, and of the package or folder that a module of one's own lies in; libraries
    are not, nor is `btp.report`. A module that is not there has no file.
    """
    found: set[Path] = set()
    for module in modules:
        file, base = _place(module)
        if file is None:
            continue
        open_files = {file}
        while open_files:
            file = open_files.pop()
            found.add(file)
            open_files |= _imported(file, base, module.split(".")[0]) - found
    return sorted(found)


def named_files() -> list[Path]:
    """All files of the packages from which configs and checkpoints choose modules by name."""
    return sorted(file for name in NAMED for file in (ROOT / "btp" / name).rglob("*.py"))


def _place(module: str) -> tuple[Path | None, Path]:
    """The file of a module, and the folder in which its package lies."""
    own = _file(ROOT, module)
    if own is not None or module.split(".")[0] == "btp":
        return own, ROOT
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        spec = None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None, ROOT
    file = Path(spec.origin).resolve()
    return file, file.parents[module.count(".") + (file.name == "__init__.py")]


@cache
def _imported(file: Path, base: Path, package: str) -> frozenset[Path]:
    """The files that one file imports, of this project or of what lies in `base`."""
    found: set[Path | None] = set()
    for match in _IMPORT.finditer(file.read_text(encoding="utf-8")):
        if match["plain"]:
            names = [name.strip() for name in _REMARK.sub("", match["plain"]).split(",")]
        else:
            above = _above(file, base, len(match["dots"]))
            start = ".".join(part for part in (above, match["base"]) if part)
            names = [f"{start}.{name}" for name in re.findall(r"\w+", _REMARK.sub("", match["names"]))] or [start]
        for name in names:
            found |= {_found(name, base, package)}
    return frozenset(path for path in found if path is not None)


def _above(file: Path, base: Path, dots: int) -> str:
    """The package that a relative import of so many dots starts from."""
    root = base if file.is_relative_to(base) else ROOT
    return ".".join(file.relative_to(root).parts[:-dots]) if dots else ""


def _found(name: str, base: Path, package: str) -> Path | None:
    """The file of what is imported by a dotted name: a module, or something in one; None where it is a library's."""
    if f"{name}.".startswith(f"{SHOWN}."):
        return None
    if name.split(".")[0] not in ("btp", package) and base.name in INSTALLED:
        return None
    for root in dict.fromkeys((ROOT, base)):
        file = _file(root, name) or _file(root, name.rpartition(".")[0])
        if file is not None:
            return file
    return None


def _file(root: Path, module: str) -> Path | None:
    if not module:
        return None
    path = root.joinpath(*module.split("."))
    return next((f for f in (path.with_suffix(".py"), path / "__init__.py") if f.is_file()), None)
