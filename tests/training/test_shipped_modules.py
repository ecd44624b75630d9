"""Modules that come with the project: whole, and found for the model that they were trained with."""

import pytest
from jobs import composed
from safetensors.torch import load_file

from btp.models.loading.checkpoint import EMBEDDED
from btp.pruners.trained_folder import read_card
from btp.runner.run_identity import Named
from btp.runner.training.find_modules import SHIPPED, shipped_for
from experiments.embedded.ship_modules import held, ship_modules

FOLDERS = sorted(SHIPPED.iterdir())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_shipped_modules_are_found_for_their_model(folder):
    card = read_card(folder)
    (bound,) = card["host"].keys() - {"name"}
    host = held(EMBEDDED / "checkpoints" / card["host"]["name"], bound)
    assert card["host"][bound] == host
    assert shipped_for({"method": card["method"]}, {bound: host}) == folder
    assert shipped_for({"method": card["method"]}, {bound: "another"}) is None
    (weights,) = folder.glob("*.safetensors")
    assert sum(x.numel() for x in load_file(weights).values()) == card["parameters"]


def test_all_shipped_modules_are_small():
    assert sum(file.stat().st_size for folder in FOLDERS for file in folder.glob("*.safetensors")) < 8 * 2**20


def test_modules_of_another_model_are_not_shipped(tmp_path):
    (tmp_path / "pocket").mkdir()
    (tmp_path / "pocket" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"which is not what .*pocket holds\. Train them with the model that ships"):
        ship_modules(FOLDERS[0], tmp_path)
    assert not (tmp_path / "modules").exists()


@pytest.mark.parametrize("name", ["lvpruning", "atp_llava"])
def test_a_run_takes_the_modules_that_ship(name, tmp_path):
    """What the command line composes is what they were trained with."""
    named = Named.of(composed("model=pocket", f"pruner={name}", f"output={tmp_path}"))
    assert shipped_for(named.config["pruner"], {"checkpoint": named.checkpoint}) in FOLDERS
