"""The family shown in docs/new_model.md is real: btp does not bring it, and its yaml and adapter make it run."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

from btp.core.schedule import Schedule, Stage
from btp.engine.attach import attach
from btp.models.loading.load import load
from btp.models.lvlm import LVLM
from btp.pruners.diversity import Diversity
from btp.pruners.fastv import FastV

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "new_model.md").read_text()
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}


@pytest.fixture
def config(monkeypatch):
    """The page's yaml with its architecture made small, and the page's adapter where the yaml says it is."""
    code, shown = (re.search(rf"```{kind}\n(.*?)```", TEXT, re.S)[1] for kind in ("python", "yaml"))
    config = yaml.safe_load(shown)
    path, _ = config["adapter"].rsplit(".", 1)
    assert f"`{path.replace('.', '/')}.py`" in TEXT
    assert not (ROOT / f"{path.replace('.', '/')}.py").exists()
    module = ModuleType(path)
    exec(compile(code, "vipllava.py", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, path, module)
    inside = config["config"]
    inside["text_config"] |= SIZES | {"num_hidden_layers": 4, "num_key_value_heads": 2}
    inside["vision_config"] |= SIZES | {"num_hidden_layers": 12, "image_size": 56}
    return config | {"weights": "random", "dtype": "float32"}


def test_it_is_a_family_of_its_own(config):
    """The yaml has the keys of the others, and the general adapter does not do."""
    others = yaml.safe_load((ROOT / "conf" / "model" / "llava15.yaml").read_text())
    assert list(config) == list(others)
    lvlm = load(config | {"adapter": "btp.models.lvlm.LVLM"}, None, torch.device("cpu")).host
    with pytest.raises(ValueError, match="has no example inputs"):
        lvlm.example(1, 4, 56, 56)


def test_the_shown_adapter_works(config):
    """Places on the grid, and methods that prune by the decoder."""
    lvlm = load(config, None, torch.device("cpu")).host
    assert type(lvlm) is not LVLM
    inputs = lvlm.example(2, 5, 56, 56)
    assert lvlm.coords(inputs).tolist() == [[[0, row, column] for row in range(4) for column in range(4)]] * 2
    methods = {"attention": FastV(score="probs", query="last", seed=0), "diversity": Diversity()}
    for method in methods.values():
        with attach(lvlm, method, Schedule((Stage("llm.layer.2", keep=5),))) as trace:
            lvlm.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert trace.tokens_avg == [(16 * 2 + 5 * 2) / 4] * 2


def test_cuts_in_the_tower_are_refused(config):
    """As its docstring says."""
    lvlm = load(config, None, torch.device("cpu")).host
    with pytest.raises(ValueError, match="one layer read by the projector"):
        attach(lvlm, Diversity(), Schedule((Stage("vision.output", keep=5, positions="renumber"),))).__enter__()
