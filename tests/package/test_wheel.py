"""What pip installs is whole: built as a wheel, put into a fresh environment, used from an empty folder.

The environment sees the libraries of this one, and nothing of this folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from setup import described

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
CARRIED = ("btp", "conf", "docs", "hydra_plugins", "setup.py", "pyproject.toml", "README.md", "LICENSE")
SMALL = ("experiment=smoke", "limit=4", "overlays=1", "cost.enabled=false", "logger=none", "pruner=fastv")
LIBRARIES = Path(torch.__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that nothing of it is left here."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in CARRIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "--no-build-isolation", "-w", str(out)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def home(wheel, tmp_path_factory) -> Path:
    """A fresh environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "libraries.pth").write_text(f"{LIBRARIES}\n", encoding="utf-8")  # whose own .pth files nobody reads
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install", "--no-deps"]
    subprocess.run([*pip, "--force-reinstall", str(wheel)], check=True, capture_output=True, timeout=300)
    return folder / "bin"


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Path:
    """The folder that all commands run in, one after another."""
    return tmp_path_factory.mktemp("empty")


def run(home: Path, folder: Path, *words: str, name: str = "btp", fails: bool = False) -> str:
    """What a command of the environment prints."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(home / name), *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=500
    )
    assert (done.returncode != 0) == fails, done.stderr[-3000:]
    return done.stdout + done.stderr


def metadata(wheel: Path):
    """The METADATA file."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (one for one in archive.namelist() if one.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


def test_what_the_wheel_holds(wheel):
    """Code, yamls, pages and checkpoints; all that a clone has of them."""
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"btp/py.typed", "btp/docs/errors.md", "btp/docs/papers.yaml", "btp/conf/config.yaml"} <= names
    for folder, inside in (("conf", "btp/conf"), ("btp", "btp")):
        mine = {p.relative_to(ROOT / folder).as_posix() for p in (ROOT / folder).rglob("*") if p.is_file()}
        lost = {one for one in mine if "__pycache__" not in one and f"{inside}/{one}" not in names}
        assert not lost


def test_what_it_says_of_itself(wheel):
    """Its name is free, its import is btp; PyPI can show every link of its page."""
    about = metadata(wheel)
    assert about["Name"] == "btp-prune"
    assert not re.search(r"\]\((?!https?:|#)", about.get_payload())
    extras = set(about.get_all("Provides-Extra"))
    assert {"slurm", "optuna", "lmms", "video", "quantize"} <= extras


def test_links_are_absolute_where_the_repository_is_known():
    """Pictures as raw files, pages as the host shows them, anchors and sites alone; without it, the text."""
    text = "![a](docs/a.png) [b](docs/b.md#c) [d](#e) [f](https://g.org)"
    raw = "https://raw.githubusercontent.com/me/btp/main/docs/a.png"
    page = "https://github.com/me/btp/blob/main/docs/b.md#c"
    assert described(text, "https://github.com/me/btp") == f"![a]({raw}) [b]({page}) [d](#e) [f](https://g.org)"
    assert described(text, None) == " b [d](#e) [f](https://g.org)"


def test_pins_lie_in_the_ranges():
    """What this release was tested with is what it asks for; every requirement has a pin."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [one for file in ROOT.glob("requirements*.txt") for one in file.read_text(encoding="utf-8").splitlines()]
    pins = {r.name.replace("_", "-").lower(): r for r in (Requirement(x) for x in lines if "==" in x and x[0] != "#")}
    for text in project["dependencies"]:
        asked = Requirement(text)
        pin = pins[asked.name.replace("_", "-").lower()]
        (version,) = (spec.version for spec in pin.specifier)
        assert asked.specifier.contains(version), text


@pytest.mark.slow
def test_the_main_job_and_what_reads_it(home, empty):
    """A run, its report again, one sample explained; a version, a command that is not there, words for a shell."""
    said = run(home, empty, *SMALL)
    assert "report.html" in said
    (folder,) = (p.parent for p in (empty / "outputs").glob("*/run.json"))
    state = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert state["command"].startswith("btp ")
    assert state["versions"]["btp"] == metadata_version()
    sample = sorted(json.loads((folder / "run.json").read_text(encoding="utf-8"))["prompt"]["sample"].split())[0]
    assert "report.html" in run(home, empty, "report", str(folder))
    assert "fastv" in run(home, empty, "explain", str(folder), sample)
    assert "there is no command raport. Commands: cite," in run(home, empty, "raport", fails=True)
    said = run(home, empty, "model.path=nowhere", fails=True)
    assert "there is no such folder" in said
    assert "@inproceedings{fastv2024," in run(home, empty, "cite", "fastv")


@pytest.mark.slow
def test_sweeps_and_studies(home, empty):
    """A sweep ends in a comparison, an experiment in its figure and table, Optuna in its front."""
    said = run(home, empty, "-m", *SMALL[:-1], "pruner=fastv,dart", name="btp")
    assert "comparison.html" in said
    sweeps = empty / "outputs" / "multirun"
    (first,) = sweeps.iterdir()
    assert "fastv" in run(home, empty, "-m", "btp", "sweep", "status", str(first), name="python")
    words = ("-m", "experiment=depth_sweep", "model=pocket_mini", "limit=4", "cost.enabled=false", "logger=none")
    run(home, empty, *words, "pruner.layer=2,5", "hydra.sweep.dir=study")
    assert (empty / "study" / "depth_sweep.md").is_file()
    assert "depth_sweep" in run(home, empty, "study", "study", "--name", "depth_sweep", "--out", "again")
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "budget.share=interval(0.3,0.6)")
    run(home, empty, "-m", *SMALL, *search, "hydra.sweep.dir=search")
    assert (empty / "search" / "sweep.json").is_file()


def metadata_version() -> str:
    """The version that pyproject.toml takes."""
    from btp import __version__

    return __version__


@pytest.mark.parametrize("command", ["btp", "python run.py"])
def test_shells_complete_words(command, home, empty):
    """Both entries print the script that bash asks for, and answer its question."""
    words = command.split()
    own = [str(home / "btp")] if words == ["btp"] else [sys.executable, "run.py"]
    folder = empty if words == ["btp"] else ROOT
    script = subprocess.run([*own, "-sc", "install=bash"], cwd=folder, capture_output=True, text=True, timeout=120)
    assert f"hydra_bash_completion {words[0]}" in script.stdout.replace("-F ", "")
    asked = os.environ | {"COMP_LINE": f"{command} model=pocket pruner=fa"}
    said = subprocess.run(
        [*own, "-sc", "query=bash"], cwd=folder, env=asked, capture_output=True, text=True, timeout=120
    )
    assert {"pruner=fastv", "pruner=fastervlm"} <= set(said.stdout.split())
    keys = subprocess.run(
        [*own, "-sc", "query=bash"],
        cwd=folder,
        env=os.environ | {"COMP_LINE": f"{command} budget."},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert {"budget.share=", "budget.tokens="} <= set(keys.stdout.split())
