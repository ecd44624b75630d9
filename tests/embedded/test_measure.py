"""Measures of the embedded models on untrained checkpoints: every arm runs, tables are whole, nothing is flattered."""

import json
import math
import sys
from functools import partial

import pytest
import torch

from btp.models.embedded.pocket_text import build_text_model
from btp.tasks.pocketclips.task import PocketClips
from btp.tasks.pocketdocs.task import PocketDocs
from experiments.embedded import measure
from experiments.embedded.measures import controls
from experiments.embedded.recipes.pocket_text import TEXT, PocketText
from experiments.embedded.train import load_recipe
from tests.runner.vision_models import save

pytestmark = pytest.mark.long


def save_text(folder):
    """An untrained pocket_text of two layers, which says something."""
    recipe = PocketText()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_text_model(recipe.tokenizer, TEXT | {"num_hidden_layers": 2})
    model.save_pretrained(folder)
    recipe.tokenizer.save_pretrained(folder)


def save_video(folder):
    """An untrained pocket_video."""
    recipe = load_recipe("pocket_video")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        recipe.save(recipe.build().eval(), folder)


SAVE = {"pocket_text": save_text, "pocket_video": save_video}


@pytest.mark.parametrize(
    ("name", "samples", "head", "empty", "control", "depth"),
    [
        ("pocket_vim", 20, "top1", "blank picture", "smaller picture 25.0%", "withdrawn at 7"),
        ("pocket_det", 8, "AP50", "blank picture", "oracle boxes 10.0%", "withdrawn at 5"),
        ("pocket_action", 6, "top1", "blank clip", "fewer frames 12.5%", "random 10% at 5"),
        ("pocket_text", 9, "macro", "no context", "window of slots 25.0%", "withdrawn at 1"),
        ("pocket_video", 8, "macro", "blank video", "fewer frames 25.0%", "withdrawn at 7"),
    ],
)
def test_a_card_has_every_control_and_says_what_is_not_met(
    name, samples, head, empty, control, depth, tmp_path, monkeypatch, capsys
):
    for task in (PocketDocs, PocketClips):
        monkeypatch.setattr(task, "max_new_tokens", 4)  # an untrained model does not end by itself
    SAVE.get(name, partial(save, name))(tmp_path / "model")
    words = [name, "--checkpoint", str(tmp_path / "model"), "--samples", str(samples), "--out", str(tmp_path / "card")]
    monkeypatch.setattr(sys, "argv", ["measure", *words])
    measure.main()
    found = json.loads((tmp_path / "card" / f"{name}.json").read_text(encoding="utf-8"))
    table = (tmp_path / "card" / f"{name}.md").read_text(encoding="utf-8")
    assert table.strip() in capsys.readouterr().out
    scores = found["scores"]
    for arm in ("unpruned", empty, "random 50.0%", "random 25.0%", "random 10.0%", control, depth):
        assert f"| {arm} |" in table
        assert all(0 <= value <= 100 and math.isfinite(value) for value in scores[arm].values())
        assert head in scores[arm]
    assert ("chance" in scores) == (name != "pocket_det")
    assert not all(check["met"] for check in found["acceptance"])
    assert not next(check for check in found["acceptance"] if check["what"].startswith("unpruned"))["met"]


def test_the_matchers_card_is_beside_frames_at_random(tmp_path, monkeypatch):
    """An untrained matcher is held against the share of frames that are of the event."""
    recipe = load_recipe("pocket_matcher")
    recipe.save(recipe.build().eval(), tmp_path / "model")
    words = ["pocket_matcher", "--checkpoint", str(tmp_path / "model"), "--samples", "8", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["measure", *words])
    measure.main()
    scores = json.loads((tmp_path / "pocket_matcher.json").read_text(encoding="utf-8"))["scores"]
    best = {ability: share for ability, share in scores["best frame"].items() if ability != "macro"}
    assert set(best.values()) <= {0.0, 50.0, 100.0}  # of 8 questions two ask for each ability
    assert sum(best.values()) / len(best) == scores["best frame"]["macro"]
    assert 12.5 <= scores["frames at random"]["macro"] <= 50


def test_random_that_does_not_fall_and_a_shallow_knee_are_not_met():
    scores = {
        "chance": {"macro": 10.0, "a": 10.0, "b": 10.0},
        "blank picture": {"macro": 10.0},
        "unpruned": {"macro": 90.0, "a": 90.0, "b": 90.0},
        "random 50.0%": {"macro": 80.0},
        "random 25.0%": {"macro": 60.0},
        "random 10.0%": {"macro": 40.0, "a": 50.0, "b": 51.0},
        **{f"withdrawn at {i}": {"macro": 10.0 if i < 3 else 90.0} for i in range(1, 5)},
    }
    assert controls.falls(scores, "macro") == {
        "what": "random, least step down in macro",
        "asked": "0 or more",
        "found": 10.0,
        "met": True,
    }
    assert controls.hurts(scores, ["a", "b"])["found"] == 1  # b keeps more than half of what lies above chance
    assert controls.knee(scores, 5, "macro") == pytest.approx(50.0)  # half way between layers 2 and 3 of 5
    assert [c["met"] for c in controls.knee_lies_deep(scores, "macro", 5)] == [True, True]
    scores["random 25.0%"]["macro"] = 85.0
    assert not controls.falls(scores, "macro")["met"]
    scores |= {f"withdrawn at {i}": {"macro": 90.0} for i in range(1, 5)}
    assert [c["met"] for c in controls.knee_lies_deep(scores, "macro", 5)] == [False, True]


def test_a_recipe_without_a_measure_says_so(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["measure", "pocket_mini"])
    with pytest.raises(SystemExit, match=r"no measure.*pocket_vim"):
        measure.main()


def test_a_checkpoint_that_is_not_there_says_how_it_is_made(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["measure", "pocket_vim", "--checkpoint", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match=r"experiments\.embedded\.train pocket_vim"):
        measure.main()
