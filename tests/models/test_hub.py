"""The local hub cache: revisions, and what says that something is not in it."""

import json
import shutil

import pytest
import torch
from saved import edit, settings, whole

from btp.models.loading.checkpoint import find_checkpoint
from btp.models.loading.load import load

__all__ = ["whole"]  # fixtures
CPU = torch.device("cpu")


@pytest.fixture
def cache(whole, tmp_path, monkeypatch):
    """A local hub cache with two revisions of one repository, laid out as the hub's own tool does."""
    home = tmp_path / "hub" / "models--somebody--tiny"
    for name, commit, layers in (("main", "a" * 40, 3), ("old", "b" * 40, 2)):
        shutil.copytree(whole, home / "snapshots" / commit)
        edit(home / "snapshots" / commit / "config.json", note=layers)
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / name).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return home


def from_hub(**keys):
    return settings(**{"path": None, "hub": "somebody/tiny"} | keys)


@pytest.mark.parametrize(("revision", "note"), [(None, 3), ("main", 3), ("old", 2), ("b" * 40, 2)])
def test_a_revision_is_taken_from_the_cache(cache, revision, note):
    folder = find_checkpoint(from_hub(revision=revision))
    assert json.loads((folder / "config.json").read_text())["note"] == note
    assert load(from_hub(), folder, CPU).host.num_layers == 3


def test_a_revision_that_is_not_there_says_which_are(cache):
    with pytest.raises(
        ValueError, match=r"somebody/tiny at revision new, .*holds its revisions main, old; .*sion new`"
    ):
        find_checkpoint(from_hub(revision="new"))
    with pytest.raises(
        ValueError, match=r"weights of somebody/other, and they are not in the local hub cache. Download"
    ):
        find_checkpoint(from_hub(hub="somebody/other"))


def test_a_revision_without_effect_is_refused(whole):
    with pytest.raises(
        ValueError, match=r"model.revision is v1, .* takes .* as it lies there. Set model.revision=null"
    ):
        find_checkpoint(settings(whole, revision="v1"))
    with pytest.raises(ValueError, match=r"but this run builds the architecture of the yaml"):
        find_checkpoint(from_hub(revision="v1", weights="random", config={"model_type": "llava"}))


def test_a_cache_that_is_not_complete_is_refused(cache):
    lost = sorted((cache / "snapshots" / ("a" * 40)).glob("*.safetensors"))[0]
    lost.unlink()
    with pytest.raises(ValueError, match=rf"1 of them is not there: {lost.name}"):
        find_checkpoint(from_hub())


def test_without_path_and_hub_there_is_nothing():
    with pytest.raises(ValueError, match=r"has neither a path nor a hub name. Set model.path"):
        find_checkpoint(from_hub(hub=None))
