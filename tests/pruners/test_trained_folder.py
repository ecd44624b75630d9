"""Modules in a folder: written whole, read back as they were, refused where they are something else."""

import pytest
import torch
import yaml
from hand import signals, stage, tokens
from safetensors.torch import load_file, save_file

from btp.core.schedule import Schedule
from btp.core.site import Site
from btp.pruners.atp_llava import ATPLLaVA
from btp.pruners.lvpruning import LVPruning
from btp.pruners.trained_folder import read_weights, write_weights

SITES = ("llm.layer.1", "llm.layer.2")


def method(**changes):
    return LVPruning(**({"width": 8, "blocks": 1, "heads": 2, "tau": 1.0, "noise": 0.0, "seed": 0} | changes))


@pytest.fixture
def folder(tmp_path):
    made = method(seed=3)
    made.begin(map(Site.parse, SITES), 16)
    write_weights(made, tmp_path / "made", {"host": {"name": "tiny"}})
    return tmp_path / "made"


def test_what_was_trained_decides_as_it_did(folder):
    made, untrained = method(seed=3), method()
    found = method(weights=str(folder))
    seen, at = tokens(16, 11), stage("llm.layer.2")
    scores = [m.ranking(seen, signals(m, seen, at), at) for m in (made, found, untrained)]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])
    assert not any(p.requires_grad for p in found.modules.parameters())
    assert yaml.safe_load((folder / "trained.yaml").read_text())["host"] == {"name": "tiny"}


def test_a_stage_that_the_modules_were_not_trained_for_is_refused(folder):
    found = method(weights=str(folder))
    with pytest.raises(
        ValueError, match=r"schedule.0.site is llm.layer.5, but the weights .* for llm.layer.1, llm.layer.2"
    ):
        found.check(Schedule((stage("llm.layer.5"),)))
    seen, at = tokens(4), stage("llm.layer.5")
    with pytest.raises(ValueError, match=r"a stage stands at llm.layer.5, .* train anew for llm.layer.5: action=train"):
        found.select(seen, signals(found, seen, at), at)


def test_states_of_another_width_are_another_models(folder, monkeypatch):
    import hand

    monkeypatch.setattr(hand, "D", 24)
    found, seen, at = method(weights=str(folder)), hand.tokens(4), stage("llm.layer.2")
    with pytest.raises(ValueError, match=r"made for states of width 16, but this model's have 24"):
        found.select(seen, signals(found, seen, at), at)


def spoil_card(folder, **keys):
    card = yaml.safe_load((folder / "trained.yaml").read_text())
    (folder / "trained.yaml").write_text(yaml.safe_dump(card | keys))


def test_weights_that_are_not_what_the_card_says_are_refused(folder):
    with pytest.raises(ValueError, match=r"modules.safetensors is not what trained.yaml beside it says"):
        method(weights=str(folder), digest="0" * 64)
    state = load_file(folder / "modules.safetensors")
    save_file({k: v + 1 for k, v in state.items()}, folder / "modules.safetensors")
    with pytest.raises(ValueError, match=r"modules.safetensors is not what trained.yaml beside it says"):
        method(weights=str(folder))


def test_a_folder_without_a_card_was_not_finished(folder):
    (folder / "trained.yaml").unlink()
    with pytest.raises(ValueError, match=r"it holds no trained.yaml: it was not finished"):
        method(weights=str(folder))


@pytest.mark.parametrize("text", ["[1", "format: 7", "format: 1"])
def test_a_broken_card_is_refused(folder, text):
    (folder / "trained.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"trained.yaml (cannot be read|is no card of trained modules of format 1)"):
        method(weights=str(folder))


def test_a_file_cut_off_is_refused(folder):
    path = folder / "modules.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"modules.safetensors cannot be read"):
        method(weights=str(folder))


def test_modules_of_another_method_or_of_other_settings_are_refused(folder):
    settings = {"inside": "open", "norm": "minmax", "strides": [2], "sample": 3.0, "grid": 4, "hidden": 8}
    aims = {"start": [0.3, 0.9], "temperature": [10, 50], "target": 0.25, "average": "layers", "relative": False}
    other = ATPLLaVA(**settings, **aims, count="stage", seed=0)
    with pytest.raises(ValueError, match=r"were trained for pruner 'lvpruning', not for 'atpllava'"):
        read_weights(other, str(folder))
    with pytest.raises(ValueError, match=r"have other shapes than pruner 'lvpruning' makes with its settings: .*enter"):
        method(width=12, weights=str(folder))


def test_a_writing_that_fails_leaves_no_card(folder, monkeypatch):
    """What was there is no longer called finished, and nothing half-written is."""

    def full(path, content):
        raise OSError(28, "no space")

    monkeypatch.setattr("btp.pruners.trained_folder.write_bytes", full)
    made = method(seed=4)
    made.begin(map(Site.parse, SITES), 16)
    with pytest.raises(OSError, match="no space"):
        write_weights(made, folder, {})
    assert not (folder / "trained.yaml").exists()
