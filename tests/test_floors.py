"""Imports go down, files stay short, and heavy libraries stay where they belong."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "btp").rglob("*.py"))
WINGS = {"engine", "models", "pruners", "tasks", "measure", "report"}
COMMANDS = {"study", "sweep", "dashboard", "explain"}  # modules that `python -m btp.NAME` runs
FLOOR = {"core": 1, "ops": 1} | dict.fromkeys(WINGS, 2) | {"runner": 3} | dict.fromkeys(COMMANDS, 3)
ONLY = {
    "transformers": {"engine", "models"},
    "lightning": {"runner"},
    "wandb": {"runner"},
    "wandb_workspaces": {"runner"},
    "submitit": {"runner"},
    "hydra": {"runner"},
    "optuna": {"runner"},
}


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
        return "floor 3 is imported by nobody"
    if head in ONLY and folder not in ONLY[head]:
        return f"{head} belongs to {', '.join(sorted(ONLY[head]))}"
    if head == "btp" and rest:
        other = rest[0]
        if other not in FLOOR:
            return f"btp.{other} is on no floor"
        if FLOOR[other] > FLOOR[folder]:
            return "upward"
        if folder != other and FLOOR[other] == FLOOR[folder] == 2:
            return "sideways"
    elif folder in ("core", "ops") and head not in ("torch", "__future__") and head not in STDLIB:
        return "core and ops import torch and the standard library only"
    return None


STDLIB = __import__("sys").stdlib_module_names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    """No upward, sideways or forbidden import."""
    folder = path.relative_to(ROOT / "btp").parts[0]
    if folder == "__init__.py":
        assert not path.read_text().strip()
        return
    folder = folder.removesuffix(".py") if folder.removesuffix(".py") in COMMANDS else folder
    assert folder in FLOOR, f"btp/{folder} is on no floor"
    found = {name: why for name in imports(path) if (why := wrong(folder, name))}
    assert not found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path):
    """No file above 400 lines; __init__ files are empty."""
    text = path.read_text()
    assert text.count("\n") <= 400
    assert path.name != "__init__.py" or not text.strip()


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("core", "btp.engine.attach"),
        ("core", "transformers.Cache"),
        ("ops", "numpy"),
        ("ops", "btp.pruners.btp.BTP"),
        ("engine", "btp.models.lvlm.LVLM"),
        ("pruners", "btp.engine"),
        ("pruners", "transformers"),
        ("measure", "btp.runner.run"),
        ("engine", "lightning"),
        ("report", "wandb.sdk"),
        ("models", "experiments.pocket"),
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
        ("core", "btp.ops.pick.top_k"),
        ("ops", "btp.core.schedule"),
        ("engine", "btp.core.site"),
        ("engine", "transformers"),
        ("pruners", "btp.ops.pick"),
        ("runner", "btp.engine.attach"),
        ("runner", "lightning"),
        ("measure", "numpy"),
    ]:
        assert wrong(folder, name) is None
