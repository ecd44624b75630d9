"""What travels with the code, and what an extra is missing for."""

import tomllib
from pathlib import Path

import btp
from btp.cli.overrides import EXTRAS
from btp.results.shipped import CONF, DOCS, INSTALLED, PROGRAM, lacking, versions

ROOT = Path(__file__).resolve().parents[2]


def test_a_clone_has_its_folders_at_the_top():
    """And names the command that is there; tests/package/test_wheel.py has the other case."""
    assert (CONF, DOCS) == (ROOT / "conf", ROOT / "docs")
    assert not INSTALLED
    assert PROGRAM == "python run.py"


def test_what_is_missing_is_named_with_its_extra():
    """A module, one in a package that is not there either, and none that is."""
    for module in ("no_such_module", "no_such_package.inside"):
        said = lacking("hydra/launcher=slurm", module, "slurm")
        assert said == (
            f"hydra/launcher=slurm needs {module}, which is not installed. Install it: pip install 'btp-prune[slurm]'."
        )
    assert lacking("a run", "torch", "slurm") is None


def test_extras_are_those_of_the_distribution():
    """Every option that needs one names one that there is."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {extra for _, extra in EXTRAS.values()} <= set(extras)


def test_versions():
    """Ours comes from the code, so that a clone that is not installed has one; what is not there is left out."""
    found = versions(["torch", "no-such-distribution"])
    assert found["btp"] == btp.__version__
    assert set(found) == {"btp", "torch"}
    assert f"version: {btp.__version__}" in (ROOT / "CITATION.cff").read_text()
