"""Real shapes scaled to a processor, and how the choice grows."""

import json
import sys

import pytest
import torch

from btp.measure.hardware import peak_above_mib
from experiments.cost import growth
from experiments.cost.arms import composed
from experiments.cost.growth_table import exponent
from experiments.cost.shapes import published_words, shapes, words_of


@pytest.mark.parametrize("name", shapes())
def test_a_shape_is_its_model_at_a_quarter_of_the_width(name):
    """As many layers and visual tokens; every width a quarter, to the next multiple of eight."""
    small = composed(*words_of(name), "pruner=none")["model"]
    real = composed(f"model={shapes()[name]['model']}", "pruner=none")["model"]
    assert small["example"] == real["example"]
    for part in ("text_config", "vision_config"):
        ours, theirs = small["config"][part], real["config"][part]
        for key, value in theirs.items():
            if key in ("hidden_size", "intermediate_size", "out_hidden_size"):
                assert 0 <= ours[key] - value / 4 < 8
            elif "heads" not in key and key != "rope_parameters":
                assert ours[key] == value
    text = small["config"]["text_config"]
    assert text["hidden_size"] == 64 * text["num_attention_heads"]


def test_whose_published_schedule():
    """The model's own, else LLaVA-1.5's, else the only one, else none."""
    groups = {name: composed(f"pruner={name}")["pruner"] for name in ("btp", "fastv", "vflowopt", "random")}
    taken = {name: published_words(group, "llava_next") for name, group in groups.items()}
    assert [words[-1].partition("=")[2] if words else "" for words in taken.values()] == [
        "llava_next",
        "llava15",
        "llava_onevision",
        "",
    ]


def test_a_model_of_conf_is_no_shape():
    """Its name is the whole command line."""
    assert words_of("pocket") == ["model=pocket"]


def test_peak_of_the_allocator():
    """Three matrices at once, of which the first went before; what was held before does not count."""
    a = torch.ones(512, 512)  # 1 MiB

    def work():
        b = a + 1
        c = b + 1
        del b
        d = c + 1
        return d + c

    work()
    assert peak_above_mib(work, a.device) == pytest.approx(3, abs=0.01)


def test_exponents():
    """Slopes of a power and of a constant; too few sizes have none."""
    sizes = [576, 1156, 2304, 4624]
    assert exponent(sizes, [n**2 for n in sizes]) == pytest.approx(2)
    assert exponent(sizes, [5.0] * 4) == pytest.approx(0, abs=1e-9)
    assert exponent(sizes[:3], [1, 2, 3]) is None


@pytest.mark.long
def test_growth(tmp_path, monkeypatch):
    """A method's choice in time and memory at each size, a block's merging, and who has no choice; known ones stay."""
    words = [
        "--pruner",
        "fastv",
        "tome",
        "no_image",
        "--side",
        "4",
        "6",
        "--repeats",
        "2",
        "--out",
        tmp_path / "growth",
    ]
    monkeypatch.setattr(sys, "argv", ["growth", *map(str, words)])
    assert growth.main() == 0
    found = json.loads((tmp_path / "growth.json").read_text())["methods"]
    for name in ("fastv", "tome"):
        assert set(found[name]) == {"16", "36"}
        assert all(len(size["seconds"]) == 2 and size["peak_mib"] > 0 for size in found[name].values())
    assert "no pruner to decide" in found["no_image"]["refused"]
    assert (tmp_path / "growth.png").stat().st_size > 0
    assert "| fastv | " in (tmp_path / "growth.md").read_text()
    monkeypatch.setattr(growth, "weigh", lambda *_: pytest.fail("measured again"))
    assert growth.main() == 0
