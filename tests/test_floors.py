"""Imports go down and in no circle, files stay short, and heavy libraries stay where they belong."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "btp").rglob("*.py"))
COMMANDS = {"study", "sweep", "dashboard", "explain", "cite", "__main__"}  # modules that `python -m btp.NAME` runs
FLOORS = (
    {"core", "tasks"},
    {"ops", "schedules", "results"},
    {"engine", "models", "pruners", "measure", "report"},
    {"runner"},
    {"cli"},
    {"lmms_eval", "api"},
    COMMANDS,
)
FRONT = ROOT / "btp" / "__init__.py"  # names what btp.api holds, for Python
FLOOR = {room: number for number, rooms in enumerate(FLOORS, 1) for room in rooms}
ONLY = {
    "transformers": {"engine", "models"},
    "lightning": {"runner"},
    "wandb": {"runner"},
    "wandb_workspaces": {"runner"},
    "submitit": {"runner", "cli"},
    "hydra": {"runner", "cli", "lmms_eval"},
    "optuna": {"runner"},
    "triton": {"ops"},
}
STDLIB = __import__("sys").stdlib_module_names


def imports(path: Path) -> list[str]:
    """Full dotted names a file imports, wherever in the file; relative imports are resolved."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join(base + ([node.module] if node.module else []))
            names += [f"{module}.{alias.name}" for alias in node.names]
    return names


def wrong(folder: str, name: str) -> str | None:
    """Why a file of `folder` may not import `name`; None where it may."""
    head, *rest = name.split(".")
    if head == "experiments" or head == "run":
        return "experiments and run.py are imported by nobody"
    if head in ONLY and folder not in ONLY[head]:
        return f"{head} belongs to {', '.join(sorted(ONLY[head]))}"
    if head == "btp" and rest:
        other = rest[0]
        if other not in FLOOR:
            return f"btp.{other} is on no floor"
        if FLOOR[other] > FLOOR[folder]:
            return "upward"
        if folder != other and FLOOR[other] == FLOOR[folder]:
            return "sideways"
    elif folder in ("core", "ops", "schedules") and head not in ("torch", "triton", "__future__", *STDLIB):
        return "core, ops and schedules import torch and the standard library only"
    return None


def module_of(path: Path) -> str:
    """Dotted name of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def graph() -> dict[str, set[str]]:
    """Which file of ours imports which."""
    known = {module_of(path): path for path in FILES}
    return {
        module: {name if name in known else name.rpartition(".")[0] for name in imports(path)} & known.keys()
        for module, path in known.items()
    }


def circle(edges: dict[str, set[str]]) -> list[str]:
    """The files of one circle of imports; empty where there is none."""
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        found = next((c for other in sorted(edges[module]) if (c := walk(other, [*path, module]))), [])
        done.add(module)
        return found

    return next((c for module in sorted(edges) if (c := walk(module, []))), [])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    """No upward, sideways or forbidden import."""
    folder = path.relative_to(ROOT / "btp").parts[0]
    if path == FRONT:
        mine = ("btp.api.", "btp.results.shipped.", "btp.cli.interrupts.")
        assert all(name.startswith(mine) for name in imports(path) if "btp" in name)
        return
    folder = folder.removesuffix(".py") if folder.removesuffix(".py") in COMMANDS else folder
    assert folder in FLOOR, f"btp/{folder} is on no floor"
    found = {name: why for name in imports(path) if (why := wrong(folder, name))}
    assert not found


def test_no_circle():
    """No file imports itself by way of others."""
    assert not circle(graph())


def test_a_circle_is_seen():
    """A chain is none; a chain that comes back is one."""
    assert not circle({"a": {"b"}, "b": {"c"}, "c": set()})
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path):
    """No file above 400 lines; __init__ files are empty, but the one that names what there is for Python."""
    text = path.read_text()
    assert text.count("\n") <= 400
    assert path.name != "__init__.py" or path == FRONT or not text.strip()


def test_rooms_are_no_drawers():
    """No folder holds more than 15 files, but those with one method or one operation a file."""
    counts = {folder: len(list(folder.glob("*.py"))) for folder in {path.parent for path in FILES}}
    crowded = {str(f.relative_to(ROOT)): n - 1 for f, n in counts.items() if n - 1 > 15}  # __init__ is none
    assert crowded.keys() <= {"btp/pruners", "btp/ops"}


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("core", "btp.engine.attach"),
        ("core", "btp.ops.merge"),
        ("core", "transformers.Cache"),
        ("ops", "numpy"),
        ("core", "triton.language"),
        ("ops", "btp.pruners.btp.BTP"),
        ("schedules", "btp.ops.merge"),
        ("engine", "btp.models.lvlm.LVLM"),
        ("pruners", "btp.engine"),
        ("pruners", "transformers"),
        ("measure", "btp.runner.run"),
        ("engine", "lightning"),
        ("report", "wandb.sdk"),
        ("runner", "btp.cli.run"),
        ("models", "experiments.embedded"),
        ("tasks", "btp.secret.door"),
    ],
)
def test_the_check_can_fail(folder, name):
    """Upward, sideways and forbidden imports are seen."""
    assert wrong(folder, name)


def test_lawful_imports():
    """What is allowed stays allowed."""
    for folder, name in [
        ("core", "torch.nn"),
        ("ops", "btp.core.topk.top_k"),
        ("ops", "triton"),
        ("schedules", "btp.core.site"),
        ("engine", "btp.core.site"),
        ("engine", "transformers"),
        ("pruners", "btp.ops.merge"),
        ("runner", "btp.engine.attach"),
        ("runner", "lightning"),
        ("measure", "numpy"),
    ]:
        assert wrong(folder, name) is None
