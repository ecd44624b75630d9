"""docs/quickstart.md is real: its files are written and its commands run, in its order, in a copy of the project."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
STEP = re.compile(r"(?:^`(?P<file>[\w/.]+)`\n\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```", re.M | re.S)
LEFT_OUT = shutil.ignore_patterns(".*", "outputs", "work", "site", "wandb", "__pycache__", "*.egg-info", "multirun")


def in_shell(command: str, folder: Path) -> str:
    """What a command says; in a shell that has this Python in front, as behind `activate`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.slow
def test_the_quickstart(tmp_path):
    """Every step works, and the own pruner's runs are in the comparison that it ends with."""
    clone = tmp_path / "btp"
    shutil.copytree(ROOT, clone, ignore=LEFT_OUT)
    steps = list(STEP.finditer((ROOT / "docs" / "quickstart.md").read_text()))
    assert [step["kind"] for step in steps] == ["sh", "sh", "sh", "python", "yaml", "sh", "sh", "python", "yaml", "sh"]
    for step in steps[1:]:  # the first one installs
        if step["file"]:
            (clone / step["file"]).write_text(step["text"])
            continue
        for command in step["text"].splitlines():
            said = in_shell(command, clone)
            if "pytest" in command:
                assert re.search(r"[1-9]\d* passed", said)
            elif "btp.explain" in command:
                assert "standout on pocket" in said
                assert "Every stage kept the same tokens as in the run" in said
            elif "--" not in command and "btp.report" not in command:
                assert "report" in said or "comparison" in said
    runs = [json.loads(path.read_text()) for path in clone.glob("outputs/*/run.json")]
    methods = [arm["arm"] for run in runs for arm in run["arms"]]
    assert methods.count("standout") == 3
    assert {"btp", "fastv"} < set(methods)
    page = (clone / "outputs" / "comparison" / "comparison.html").read_text()
    assert "standout" in page
    assert "look=1" in page


def test_as_many_pictures_as_it_says():
    """The page tells how many pictures of kept tokens the small run leaves."""
    overlays = yaml.safe_load((ROOT / "conf" / "experiment" / "smoke.yaml").read_text())["overlays"]
    (said,) = re.findall(r"kept of (\w+) pictures", (ROOT / "docs" / "quickstart.md").read_text())
    assert said == ("no", "one", "two", "three", "four", "five", "six")[overlays]


def test_installing_is_a_target_of_make():
    """The one step that is not run here names a target that there is."""
    first = STEP.search((ROOT / "docs" / "quickstart.md").read_text())["text"].splitlines()
    assert first == ["make setup", "source .venv/bin/activate"]
    assert re.search(r"^setup:", (ROOT / "Makefile").read_text(), re.M)
    assert re.search(r"^VENV := \.venv$", (ROOT / "Makefile").read_text(), re.M)
