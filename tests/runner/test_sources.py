"""Results are renewed by who edits what makes them, and by nothing else: tried on a copy of the project."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from btp.runner import sources
from btp.runner.identity import checkpoint, code, code_of
from btp.runner.sources import files_behind, modules_of

ROOT = Path(__file__).resolve().parents[2]
COUNT = """
import json, sys
sys.path.insert(0, "tests/runner")
from pathlib import Path
from jobs import composed
from btp.runner import identity
from btp.runner import sources
from btp.runner.arms import Arm, shared_identity
from btp.runner.calibration.calibrate import curves_identity
from btp.runner.pruner_lists import method_of
from btp.runner.run_identity import run_identity
from btp.runner.calibration.search_artifact import search_identity
from btp.core.schedule import Schedule

def names():
    for module in (identity, sources):
        for found in vars(module).values():
            if hasattr(found, "cache_clear"):
                found.cache_clear()
    config = composed("pruner=btp")
    flow = composed("pruner=vflowopt")["pruner"]
    shared = shared_identity(config, "abc")
    arms = {name: Arm(name, "control", node["method"], Schedule()).identity(shared)
            for name, node in {"btp": config["pruner"], "random": config["controls"]["random"]}.items()}
    return {"calibration": curves_identity(config, "abc"), "answers": shared, **arms,
            "run": run_identity(config, "abc"),
            "search": identity.digest(
                search_identity("btp.runner.calibration.vflowopt", config, "abc", flow, flow["search"]))}

before, found = names(), {}
for path in sys.argv[1:]:
    file = Path(path)
    text = file.read_text()
    file.write_text(text + "\\n# edited\\n")
    found[path] = sorted(name for name, value in names().items() if value != before[name])
    file.write_text(text)
assert names() == before
print(json.dumps(found))
"""
EVERY = ["answers", "btp", "calibration", "random", "run", "search"]
RENEWED = {
    "btp/runner/evaluation/data.py": EVERY,  # the prompt
    "btp/core/topk.py": EVERY,
    "btp/models/lvlm.py": EVERY,
    "btp/engine/decoder/stream.py": EVERY,
    "btp/core/keep.py": EVERY,
    "btp/tasks/scoring.py": EVERY,
    "btp/tasks/metrics/vqa_accuracy.py": EVERY,
    "btp/tasks/pocketvqa/layout.py": EVERY,
    "btp/runner/evaluation/batch_size.py": EVERY,
    "btp/runner/evaluation/oracle_targets.py": ["answers", "btp", "random", "run"],  # what an oracle is told
    "btp/runner/evaluation/evaluate.py": ["answers", "btp", "random", "run"],
    "btp/runner/calibration/calibrate.py": ["calibration", "run"],
    "btp/runner/calibration/artifact.py": ["calibration", "run", "search"],
    "btp/runner/calibration/vflowopt.py": ["run", "search"],
    "btp/pruners/btp.py": ["btp", "run"],
    "btp/pruners/random.py": ["random", "run"],  # of a control
    "btp/pruners/vflowopt.py": ["search"],
    "btp/runner/plan_arms.py": ["run"],
    "btp/measure/flops.py": ["run"],
    "btp/pruners/dart.py": [],
    "btp/report/pages/run_page.py": [],
    "btp/report/tables/run_table.py": [],
    "btp/runner/sweeps/summary.py": [],
    "btp/runner/tracking/wandb_workspace.py": [],
    "docs/concepts.md": [],
    "README.md": [],
}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the project, without what was built in it."""
    folder = tmp_path_factory.mktemp("clone")
    without = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in ("btp", "conf", "docs", "tests/runner"):
        shutil.copytree(ROOT / name, folder / name, ignore=without)
    for name in ("run.py", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def python(clone, *words):
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(clone), "COLUMNS": "160"}
    done = subprocess.run([sys.executable, *words], cwd=clone, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
def test_an_edit_renews_what_it_makes_and_nothing_else(clone):
    """The module of the prompt, an op, a task's scoring, the oracle's targets; not another method, a page or a text."""
    found = json.loads(python(clone, "-c", COUNT, *RENEWED).splitlines()[-1])
    assert found == RENEWED


@pytest.mark.slow
def test_an_edited_prompt_is_calibrated_and_answered_anew(clone, tmp_path):
    """The same command after an edit: of a page nothing is computed, of the prompt everything."""
    words = ["experiment=smoke", "logger=none", "trainer=cpu", "trainer.workers=0", f"output={tmp_path}", "limit=4"]
    words += ["cost.enabled=false", "calibration.samples=4", "stages=1", "~controls.no_image", "overlays=1"]
    store = tmp_path / ".store"

    def made():
        return len(list(store.glob("calibration/*.yaml"))), len([p for p in store.glob("answers/*") if p.is_dir()])

    python(clone, "run.py", *words)
    assert made() == (1, 4)
    page, prompt = clone / "btp/report/pages/run_page.py", clone / "btp/runner/evaluation/data.py"
    page.write_text(page.read_text() + "\n# edited\n")
    assert "this run is finished" in python(clone, "run.py", *words)
    prompt.write_text(prompt.read_text().replace('"text": question}', '"text": question + " now"}'))
    python(clone, "run.py", *words)
    assert made() == (2, 8)


def test_imports_are_followed(tmp_path, monkeypatch):
    """Of every form, in a package of one's own too; not into libraries, and not into the report."""
    package = tmp_path / "mine"
    (package / "deep").mkdir(parents=True)
    for name, text in {
        "__init__.py": "",
        "method.py": "import torch, mine.plain as p\nfrom . import beside\nfrom .deep.far import (\n    x,  # why\n)\n",
        "plain.py": "def later():\n    from mine import lazy\n",
        "beside.py": "from btp.pruners.dart import Dart\nfrom btp.results.reader import read_run\n",
        "lazy.py": "",
        "unused.py": "",
        "deep/__init__.py": "",
        "deep/far.py": "from ..last import z\n",
        "last.py": "",
    }.items():
        (package / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    files = {
        path.relative_to(tmp_path).as_posix() for path in files_behind(["mine.method"]) if tmp_path in path.parents
    }
    assert files == {f"mine/{name}.py" for name in ("method", "plain", "beside", "lazy", "deep/far", "last")}
    ours = {path.relative_to(ROOT).as_posix() for path in files_behind(["mine.method"]) if ROOT in path.parents}
    assert {"btp/pruners/dart.py", "btp/core/pruner.py"} <= ours
    assert not any(path.startswith("btp/report") for path in ours)
    assert all("torch" not in path.parts for path in files_behind(["mine.method"]))


def test_targets_of_a_config_are_found_however_deep():
    node = {"_target_": "a.b.C", "parts": [{"x": {"_target_": "d.E"}}], "other": {"_target_": "a.b.F"}}
    assert modules_of(node, None, {"_target_": "g.H"}) == ("a.b", "d", "g")


def test_a_method_without_a_module_is_refused():
    with pytest.raises(ValueError, match=r"in module 'btp\.pruners\.nowhere', but no such module"):
        code_of({"_target_": "btp.pruners.nowhere.Method"})
    assert code_of(None) == ""
    assert code_of({"_target_": "btp.pruners.random.Random"}) != code_of({"_target_": "btp.pruners.btp.BTP"})


def test_every_package_but_the_report_and_the_methods_is_covered():
    """Whatever a run imports is hashed: a new package is found without being entered anywhere."""
    ran = {path.relative_to(ROOT).parts[1] for path in files_behind(["btp.runner.run"])}
    assert {"core", "engine", "models", "ops", "tasks", "measure", "runner"} <= ran
    assert all((ROOT / "btp" / name).is_dir() for name in sources.NAMED)
    assert code("btp.runner.evaluation.evaluate") != code("btp.runner.calibration.calibrate")


@pytest.mark.parametrize("size", [3 << 10, 1 << 20, 3 << 19, 9 << 20])
def test_another_matrix_in_the_middle_of_a_file_of_weights_is_another_checkpoint(tmp_path, size):
    """As an adapter on some layers leaves it: size and both ends stay."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(size))
    before = checkpoint(tmp_path)
    matrix = min(size // 4, 1 << 21)
    with file.open("r+b") as open_file:
        open_file.seek(size // 2)
        open_file.write(b"1" * matrix)
    assert file.stat().st_size == size
    assert checkpoint(tmp_path) != before
    (tmp_path / "README.md").write_text("what it is")
    file.write_bytes(bytes(size))
    assert checkpoint(tmp_path) == before
