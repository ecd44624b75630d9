"""A misspelt key of a group's yaml is named with the one that was meant."""

import shutil
from pathlib import Path

import pytest

from btp.cli.overrides import find_fault
from btp.runner.pruner_lists import name_lists
from btp.runner.yaml_keys import fault_of_option

CONF = Path(__file__).resolve().parents[2] / "conf"
RANDOM = "_target_: btp.pruners.random.Random\n  seed: 0\n  salt: content"


@pytest.fixture
def conf(tmp_path):
    """The project's yamls, to write others beside them."""
    return Path(shutil.copytree(CONF, tmp_path / "conf"))


def changed(conf, group, of, old, new):
    """A yaml `mine` of a group: another one with a key renamed."""
    text = (conf / group / f"{of}.yaml").read_text()
    assert f"\n{old}:" in text
    (conf / group / "mine.yaml").write_text(text.replace(f"\n{old}:", f"\n{new}:"))


@pytest.mark.parametrize(
    ("group", "of", "old", "new"),
    [
        *[("pruner", "random", "schedule", "shedule"), ("pruner", "random", "method", "metod")],
        *[("pruner", "vtw", "published", "publishd"), ("pruner", "vtw", "layer", "layr")],
        *[("model", "llava15", "dtype", "dtyp"), ("model", "llava15", "processor", "procesor")],
        *[("task", "pope", "dataset", "datset"), ("task", "pope", "reading", "raeding")],
        *[("calibration", "folder", "samples", "sampels"), ("schedule", "calibrated", "min_gap", "mingap")],
    ],
)
def test_a_misspelt_key_is_named(conf, group, of, old, new):
    changed(conf, group, of, old, new)
    wanted = f"unknown key {new} in conf/{group}/mine.yaml. Did you mean {old}?"
    assert find_fault(conf, [f"{group}=mine"]) == wanted


@pytest.mark.parametrize("words", [["pruner=btp,mine"], ["+pruner@controls.mine=mine"], ["pruner=[fastervlm,mine]"]])
def test_it_is_named_wherever_the_yaml_stands(conf, words):
    changed(conf, "pruner", "random", "schedule", "shedule")
    assert "unknown key shedule in conf/pruner/mine.yaml" in find_fault(conf, name_lists(words))


def test_a_key_that_is_left_out_is_named(conf):
    (conf / "pruner" / "mine.yaml").write_text(f"name: mine\nmethod:\n  {RANDOM}\n")
    assert find_fault(conf, ["pruner=mine"]).startswith("conf/pruner/mine.yaml has no `schedule`, which every other")


def test_the_projects_own_yamls_pass():
    yamls = [file.relative_to(CONF) for file in sorted(CONF.glob("*/*.yaml"))]
    assert len(yamls) > 50
    assert [fault for file in yamls if (fault := fault_of_option(CONF, file.parent.as_posix(), file.stem))] == []


def test_a_key_of_its_own_is_no_fault(conf):
    (conf / "pruner" / "mine.yaml").write_text(f"name: mine\nmethod:\n  {RANDOM}\nschedule: null\nnotes: by me\n")
    assert find_fault(conf, ["pruner=mine"]) is None
