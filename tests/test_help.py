"""`python run.py --help`: short, and everything that it shows is there."""

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from btp.cli.overrides import find_fault
from btp.cli.run import CONF
from btp.runner.pruner_lists import name_lists

ROOT = Path(__file__).resolve().parents[1]
SHOWN = (CONF / "hydra" / "help" / "btp.yaml").read_text()


@cache
def said() -> str:
    """What the command prints."""
    command = [sys.executable, "run.py", "--help"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout


def examples() -> list[str]:
    """Commands of run.py without what stands behind them."""
    lines = re.findall(r"^ +python run\.py ?(.*)$", SHOWN, re.M)
    return [re.split(r" {3,}|  in ", line)[0].strip() for line in lines]


@pytest.mark.long
def test_it_is_a_screen_and_a_half():
    """Sixty lines of 120 signs at most, the lists of options aside."""
    lines = said().rstrip().splitlines()
    assert len(lines) <= 60
    assert [line for line in lines if len(line) > 120 and not re.match(r"\w+: ", line)] == []


def test_it_has_all_groups():
    """With their options, those of launchers and sweepers in the examples."""
    for group in sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra"):
        options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        assert f"{group}: {', '.join(options)}" in said()
    for path in CONF.glob("hydra/[ls]*/*.yaml"):
        assert f"hydra/{path.parent.name}={path.stem}" in said()


@pytest.mark.long
@pytest.mark.parametrize("line", examples())
def test_examples_compose(line):
    """Groups, options and keys of every example exist."""
    words = [word for word in name_lists(shlex.split(line)) if word != "-m"]
    assert find_fault(CONF, words) is None


def test_keys_exist():
    """In the composed config."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config")
    block = re.search(r"Keys \(.*\n((?:    .*\n)+)", SHOWN)[1]
    named = [key for line in block.splitlines() for key in re.split(r", ", re.split(r" {2,}", line.strip())[0])]
    named += re.findall(r"\b((?:budget|model|pruner|trainer)\.[a-z.]+)", block)
    assert len(named) > 15
    missing = [key for key in named if OmegaConf.select(config, key.split("=")[0], default="gone") == "gone"]
    assert missing == []


def test_pages_and_commands_exist():
    """Those that it names."""
    commands = re.findall(r"python -m btp\.(\w+)", SHOWN)
    assert len(commands) >= 3
    assert all((ROOT / "btp" / f"{name}.py").exists() or (ROOT / "btp" / name).is_dir() for name in commands)
    assert all((ROOT / page).exists() for page in re.findall(r"docs/\w+\.md", SHOWN))
