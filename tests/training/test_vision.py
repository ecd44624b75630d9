"""Trainings of vision models: BAViT's token classifier learns, a model trains with its pruner on, resumes, and runs."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file
from train_here import composed, folders

from btp.cli.check_config import check_config
from btp.pruners.bavit import BAViT
from btp.runner.run import Run
from btp.runner.training.find_modules import model_of, shipped_for, with_modules
from experiments.embedded.ship_modules import ship_modules
from tests.runner.vision_models import save

pytestmark = pytest.mark.long

SMALL = (
    "logger=none",
    "trainer=cpu",
    "limit=4",
    "trainer.workers=0",
    "training.workers=0",
    "training.log=2",
    "training.save=2",
    "training.gap=2",
)
TINY = ("pruner.method.width=16", "pruner.method.heads=2")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Untrained checkpoints by name."""
    kept = {}

    def folder(name):
        if name not in kept:
            kept[name] = save(name, tmp_path_factory.mktemp("models") / name)
        return kept[name]

    return folder


def prepared(models, name, output, task, *words):
    torch.set_num_threads(1)
    path = f"model.path={models(name)}"
    return Run(composed(*SMALL, f"model={name}", path, f"task={task}", f"output={output}", *words), {})


def test_a_token_classifier_learns_and_says_where_it_comes_from(models, tmp_path, capsys):
    words = ("action=train", "pruner=bavit", *TINY, "training.steps=60", "training.batch=8", "training.rate=3e-3")
    run = prepared(models, "pocket_det", tmp_path, "pocketboxes", *words)
    run.go()
    (folder,) = folders(tmp_path)
    assert {p.name for p in folder.iterdir()} == {"bavit.json", "bavit.safetensors", "trained.yaml", "curve.jsonl"}
    assert json.loads((folder / "bavit.json").read_text()) == {
        "layers": 2,
        "width": 16,
        "heads": 2,
        "patch": 8,
        "grid": 12,
    }
    card = yaml.safe_load((folder / "trained.yaml").read_text())
    assert card["host"] == {"name": "pocket_det", "pictures": model_of(run.loaded, "")["pictures"]}
    curve = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    assert curve[-1]["foreground"] < curve[0]["foreground"] - 0.02
    assert {"foreground", "right", "recall", "share"} == set(card["gap"])
    assert f"pruner.weights={folder}" in capsys.readouterr().out
    made = (folder / "bavit.safetensors").stat().st_mtime_ns
    again = (*words, "budget.share=0.9", "pruner.method.select=threshold")  # nothing that it has learnt from
    prepared(models, "pocket_det", tmp_path, "pocketboxes", *again).go()
    assert (folder / "bavit.safetensors").stat().st_mtime_ns == made
    settings = {"select": "budget", "threshold": 0.5, "background": 0.0, "floor": 0.05, "seed": 0}
    shape = {"layers": 2, "width": 16, "heads": 2, "patch": None, "grid": None}
    BAViT(**settings, **shape, weights=str(folder), digest=card["digest"])
    with pytest.raises(ValueError, match="not what its card says"):
        BAViT(**settings, **shape, weights=str(folder), digest="0" * 64)
    ships_for_all_models_that_see_the_same_pictures(run, folder, models("pocket_det"), tmp_path / "checkpoints")


def ships_for_all_models_that_see_the_same_pictures(run, folder, model, checkpoints):
    shutil.copytree(model, checkpoints / "pocket_det")
    shipped = ship_modules(folder, checkpoints)
    assert shipped == checkpoints / "modules" / "bavit_pocket_det"
    assert {p.name for p in shipped.iterdir()} == {p.name for p in folder.iterdir()}
    assert load_file(shipped / "bavit.safetensors")["head.weight"].dtype == torch.float16
    pruner = {**run.config["pruner"], "method": {**run.config["pruner"]["method"], "width": None}}
    where = ("another checkpoint", run.store, run.machine, pruner, shipped.parent)
    found = with_modules(run.config, run.loaded, *where)["method"]
    assert found["weights"] == str(shipped)
    assert BAViT(**{k: v for k, v in found.items() if k != "_target_"}).classifier.embed.out_channels == 16
    bound = model_of(run.loaded, "")
    assert shipped_for(pruner, bound, shipped.parent) == shipped
    assert shipped_for(pruner, bound | {"pictures": "others"}, shipped.parent) is None
    for key, value in (("width", 32), ("layers", 10)):
        other = {"method": pruner["method"] | {key: value}}
        assert shipped_for(other, bound, shipped.parent) is None
    preprocessor = checkpoints / "pocket_det" / "preprocessor_config.json"
    preprocessor.write_text(preprocessor.read_text().replace("0.25", "0.3"))
    with pytest.raises(ValueError, match=r"trained with pocket_det \(pictures \w+\), which is not what"):
        ship_modules(folder, checkpoints)


@pytest.mark.parametrize(
    ("name", "task", "pruner"),
    [
        ("pocket_det", "pocketboxes", ("pruner=bavit", "pruner.weights=none", *TINY, "pruner.method.select=threshold")),
        ("pocket_vim", "pocketdigits", ("pruner=ssm",)),
        ("pocket_action", "pocketmoves", ("pruner=sta",)),
    ],
)
def test_a_model_trains_with_its_pruner_on(name, task, pruner, models, tmp_path, capsys):
    words = ("action=train", *pruner, "training.train=host", "training.steps=4", "training.batch=2", "budget.share=0.5")
    run = prepared(models, name, tmp_path, task, *words, "training.rate=1e-3", "training.dense=0.5")
    run.go()
    (folder,) = folders(tmp_path)
    card = yaml.safe_load((folder / "trained.yaml").read_text())
    said = capsys.readouterr().out
    assert f"model.path={folder / 'model'}" in said
    assert "pruner.weights" not in said
    curve = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    assert {"answer", "pruned", "whole"} <= set().union(*curve)
    assert card["host"]["checkpoint"] != run.checkpoint
    trained, before = (load_file(at / "model.safetensors") for at in (folder / "model", models(name)))
    moved = [key for key in before if not torch.equal(before[key], trained[key])]
    assert len(moved) > len(before) / 2
    loaded = run.loaded.host.model.state_dict()
    kept = [torch.equal(loaded[key], value) for key, value in before.items() if key in loaded]
    assert all(kept)  # the loaded one is as it was
    assert len(kept) > len(before) / 2


def test_a_killed_training_of_a_model_goes_on_where_it_stopped(models, tmp_path, monkeypatch):
    from btp.runner.training import labelled_pictures

    words = ("action=train", "pruner=ssm", "training.train=host", "training.steps=4", "training.batch=2")
    words = (*words, "training.average=0.9", "budget.share=0.5")
    prepared(models, "pocket_vim", tmp_path / "whole", "pocketdigits", *words).go()
    left, once = [3], labelled_pictures.host_loss

    def interrupted(*args):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return once(*args)

    with monkeypatch.context() as patch:
        patch.setattr(labelled_pictures, "host_loss", interrupted)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            prepared(models, "pocket_vim", tmp_path / "broken", "pocketdigits", *words).go()
    (begun,) = folders(tmp_path / "broken")
    assert begun.name.endswith(".work")
    prepared(models, "pocket_vim", tmp_path / "broken", "pocketdigits", *words).go()
    (one,), (two,) = folders(tmp_path / "whole"), folders(tmp_path / "broken")
    states = [load_file(folder / "model" / "model.safetensors") for folder in (one, two)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("pruner=bavit", "training=pocketdigits", "training.train=modules"),
            "learns here from those for one that finds",
        ),
        (("pruner=random",), r"nothing to train.*training\.train=host"),
        (("pruner=none", "training.train=host"), "pruner=none prunes nothing"),
        (("pruner=bavit", *TINY, "training.train=host"), r"and it has none for this model yet\. Train them first"),
        (("pruner=bavit", "training.dataset.split=test", "training.steps=1"), "training.dataset is the test set"),
    ],
)
def test_what_cannot_be_learnt_is_refused(words, message, models, tmp_path):
    with pytest.raises(ValueError, match=message):
        _train(prepared(models, "pocket_det", tmp_path, "pocketboxes", "action=train", *words))
    assert folders(tmp_path) == []


def _train(run):
    check_config(run.config)
    run.go()
