"""action=train, from config to a folder of modules that a run takes up; what is refused leaves nothing behind."""

import json

import pytest
import torch
import yaml
from jobs import composed, job
from offline import load
from PIL import Image
from safetensors.torch import load_file
from train_here import TINY, folders, prepared
from transformers import LlavaForConditionalGeneration

from btp.cli.check_config import check_config
from btp.core.schedule import Schedule
from btp.models.embedded.pocket import build_model, build_processor
from btp.runner.arms import Arm
from btp.runner.identity import checkpoint
from btp.runner.training import modules as training_modules
from btp.runner.training.answers import key_of
from btp.runner.training.distil import AttentionTeacher
from btp.runner.training.find_modules import with_modules
from btp.runner.training.train import Training
from btp.tasks.pocketvqa.questions import words


@pytest.mark.parametrize("pruner", ["lvpruning", "atp_llava"])
def test_modules_are_trained_and_say_where_they_come_from(pruner, tmp_path, capsys):
    run = prepared(tmp_path, f"pruner={pruner}", "training.steps=4")
    run.go()
    (folder,) = folders(tmp_path)
    assert {p.name for p in folder.iterdir()} == {"modules.safetensors", "trained.yaml", "curve.jsonl"}
    card = yaml.safe_load((folder / "trained.yaml").read_text())
    assert card["host"] == {"name": "pocket_mini", "checkpoint": run.checkpoint}
    assert card["training"]["steps"] == 4
    assert {"answer, soft", "answer, aim", "answer, unmasked"} <= set(card["gap"])
    lines = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert set(card["losses"]) <= set(lines[0])
    said = capsys.readouterr().out
    assert f"pruner.weights={folder}" in said
    assert len(load_file(folder / "modules.safetensors")) > 3
    before = (folder / "modules.safetensors").stat().st_mtime_ns
    prepared(tmp_path, f"pruner={pruner}", "training.steps=4").go()  # it is found, not made again
    assert (folder / "modules.safetensors").stat().st_mtime_ns == before


@pytest.mark.long
@pytest.mark.parametrize(
    ("where", "what", "steps"),
    [(training_modules, "masked_losses", ()), (AttentionTeacher, "loss", ("training.distil.steps=6",))],
    ids=["masked", "distilled"],
)
def test_a_training_in_pieces_has_the_curve_and_modules_of_an_unbroken_one(tmp_path, monkeypatch, where, what, steps):
    words = ("pruner=lvpruning", "training.steps=6", *steps)
    prepared(tmp_path / "whole", *words).go()
    left = [3]
    once = getattr(where, what)

    def interrupted(*args):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return once(*args)

    with monkeypatch.context() as patch:
        patch.setattr(where, what, interrupted)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            prepared(tmp_path / "broken", *words).go()
    (begun,) = folders(tmp_path / "broken")
    assert begun.name.endswith(".work")
    prepared(tmp_path / "broken", *words).go()
    (one,), (two,) = folders(tmp_path / "whole"), folders(tmp_path / "broken")

    def curve(folder):
        lines = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if k != "s"} for line in lines]

    assert curve(one) == curve(two)
    states = [load_file(folder / "modules.safetensors") for folder in (one, two)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.long
def test_a_llava_of_ones_own_learns_from_instruction_files(tmp_path):
    """It starts, steps and saves: model=llava15 with a checkpoint's path, and files in LLaVA's layout."""
    torch.manual_seed(0)
    processor = build_processor(words(), side=48, patch=8)
    size = {"num_attention_heads": 2, "num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 48}
    text = size | {"num_hidden_layers": 6, "num_key_value_heads": 2}
    model = build_model(processor.tokenizer, side=48, patch=8, vision=size, text=text)
    model.config.vision_feature_layer = -2
    model.save_pretrained(tmp_path / "llava")
    processor.save_pretrained(tmp_path / "llava")
    for i, color in enumerate(("red", "blue", "green")):
        Image.new("RGB", (40, 30), color).save(tmp_path / f"{i}.png")
    says = [{"from": "human", "value": "<image>\nwhat color is the disc ?"}, {"from": "gpt", "value": "red"}]
    entries = [{"id": str(i), "image": f"{i}.png", "conversations": says} for i in range(3)]
    (tmp_path / "llava_v1_5_mix665k.json").write_text(json.dumps(entries))
    run = prepared(
        tmp_path / "out",
        "pruner=lvpruning",
        "model=llava15",
        f"model.path={tmp_path / 'llava'}",
        "model.dtype=float32",
        "training=llava_instruct",
        f"training.path={tmp_path}",
        "training.samples=3",
        "training.steps=2",
    )
    run.go()
    (folder,) = folders(tmp_path / "out")
    card = yaml.safe_load((folder / "trained.yaml").read_text())
    assert card["host"]["name"] == "llava15"
    assert [stage["site"] for stage in card["stages"]] == ["llm.layer.1", "llm.layer.2", "llm.layer.3"]


@pytest.mark.long
def test_the_language_model_trains_beside(tmp_path, capsys):
    """It is saved with the modules, which go with it alone; the loaded one is as it was."""
    run = prepared(tmp_path, "pruner=lvpruning", "training.steps=2", "training.train=both", "training.host_rate=1e-3")
    run.go()
    (folder,) = folders(tmp_path)
    said = capsys.readouterr().out
    assert f"model.path={folder / 'model'}" in said
    trained = LlavaForConditionalGeneration.from_pretrained(folder / "model").state_dict()
    loaded = run.loaded.host.model.state_dict()
    shipped = {k: v.clone() for k, v in prepared(tmp_path, "pruner=lvpruning")._load().host.model.state_dict().items()}
    changed = [key for key, value in trained.items() if not torch.equal(value, loaded[key])]
    assert changed
    assert all("language_model" in key for key in changed)
    assert all(torch.equal(value, loaded[key]) for key, value in shipped.items())
    card = yaml.safe_load((folder / "trained.yaml").read_text())
    assert card["host"]["checkpoint"] == checkpoint(folder / "model", [run.config["model"]["config"]]) != run.checkpoint


def test_attention_teaches_before_the_answers_do(tmp_path):
    """The modules' ranking comes nearer to it, and the curve has both."""
    words = ("pruner=lvpruning", "training.steps=2", "training.distil.steps=30", "training.distil.rate=1e-2")
    prepared(tmp_path, *words, "training.log=10").go()
    (folder,) = folders(tmp_path)
    lines = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    assert [line["pruner"] for line in lines] == ["lvpruning, distil"] * 3 + ["lvpruning"]
    assert 0 < lines[2]["distil"] < 0.9 * lines[0]["distil"]
    assert yaml.safe_load((folder / "trained.yaml").read_text())["training"]["distil"]["steps"] == 30


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("pruner=atp_llava",),
            r"distil.steps is 2, but the modules of pruner 'atp_llava' do not rank tokens.*steps=0",
        ),
        (("pruner=lvpruning", "training.distil.layers=[0.5,1]"), r"of 8 layers that is 4 up to 8, .* one behind it"),
        (("pruner=lvpruning", "training.distil.layers=[0.6,0.3]"), r"training.distil.layers is \[0.6, 0.3\]"),
    ],
)
def test_a_distillation_that_teaches_nothing_is_refused(words, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        prepared(tmp_path, *words, "training.distil.steps=2").go()
    assert not folders(tmp_path)


def test_another_model_is_not_trained_on_the_way_to_answers(tmp_path):
    run = prepared(tmp_path, "pruner=lvpruning", "training.train=both")
    run.loaded = run._load()
    where = (run.loaded, run.checkpoint, run.store, run.machine, run.config["pruner"])
    with pytest.raises(
        ValueError, match=r"training.train is both, which makes another model. Train it with action=train"
    ):
        with_modules({**run.config, "action": "run"}, *where)


@pytest.mark.slow
def test_curves_are_in_wandb(tmp_path):
    words = ("pruner=lvpruning", "training.steps=4", "training.distil.steps=6", "logger=offline")
    run = prepared(tmp_path, *words)
    run.go()
    (folder,) = folders(tmp_path)
    (log,) = folder.glob("wandb/offline-run-*/*.wandb")
    found = load(log)
    assert found["run"]["job_type"] == "training"
    assert {"pocket_mini", "lvpruning", "pocketvqa", "training"} <= set(found["run"]["tags"])
    assert found["config"]["pruner"] == "lvpruning"
    logged = {part for key in found["summary"] for part in (key, key.rpartition("/")[2])}
    assert {"distil", "ratio", "answer"} <= logged | set(found["summary"].get("training", ()))
    assert found["summary"]["_step"] == 10, "the second phase goes on where the first one ends"
    before = (folder / "wandb.json").read_text()
    prepared(tmp_path, *words).go()
    assert (folder / "wandb.json").read_text() == before


@pytest.mark.slow
def test_a_run_trains_what_it_lacks_and_answers_with_it(tmp_path, capsys):
    small = ("training.steps=2", "training.batch=2", "training.gap=0", "trainer.workers=0", "limit=4")
    folder = job(
        tmp_path, "model=pocket_mini", "pruner=lvpruning", *TINY, *small, "controls=null", "cost.enabled=false"
    )
    assert "has no modules for this model yet: they are trained now, 2 steps of 2" in capsys.readouterr().out
    assert len(folders(tmp_path)) == 1
    state = json.loads((folder / "run.json").read_text())
    assert [arm["arm"] for arm in state["arms"]] == ["unpruned", "lvpruning"]


def test_modules_are_found_named_shipped_or_left_untrained(tmp_path):
    """However they come, the method's config has their folder and digest."""
    run = prepared(tmp_path, "pruner=lvpruning", "training.steps=2")
    run.go()
    (folder,) = folders(tmp_path)

    def found(weights, shipped=tmp_path, checkpoint=run.checkpoint):
        pruner = {**run.config["pruner"], "weights": weights}
        return with_modules(run.config, run.loaded, checkpoint, run.store, run.machine, pruner, shipped)["method"]

    digest = yaml.safe_load((folder / "trained.yaml").read_text())["digest"]
    for method in (found("auto"), found(str(folder)), found("auto", shipped=folder.parent)):
        assert (method["weights"], method["digest"]) == (str(folder), digest)
    assert "weights" not in found("none")
    with pytest.raises(ValueError, match=r"were trained with model 'pocket_mini' .* this run's checkpoint is other"):
        found(str(folder), checkpoint="other")
    with pytest.raises(ValueError, match=r"it holds no trained.yaml: there is no such folder of modules"):
        found(str(tmp_path / "nowhere"))


def test_answers_are_named_by_the_modules_and_not_by_their_folder():
    """The same modules elsewhere give the same answers; others give others."""
    method = composed("pruner=lvpruning")["pruner"]["method"]
    arms = [
        Arm("x", "method", {**method, "weights": folder, "digest": digest}, Schedule()).identity("")
        for folder, digest in (("a", "1"), ("b", "1"), ("a", "2"))
    ]
    assert arms[0] == arms[1] != arms[2]


def refused(output, message, *words):
    """The training is refused with the message, and nothing of it stays."""
    with pytest.raises(ValueError, match=message):
        prepared(output, "pruner=lvpruning", "training.steps=4", "action=train", *words).go()
    assert folders(output) == []


def test_a_training_on_the_test_set_is_refused(tmp_path):
    refused(tmp_path, r"training.dataset is the test set: both are .*PocketVQA", "training.dataset.split=test")


def test_a_sample_of_the_test_set_is_refused(tmp_path, monkeypatch):
    """Other draws that come to the same picture and question, as files may."""
    monkeypatch.setattr(Training, "_tested", lambda self: {key_of(self.data[i]) for i in range(len(self.data))})
    refused(tmp_path, r"training sample train-0-\d+ is one of the test samples", "training.samples=4")


def test_a_loss_that_is_not_finite_is_refused(tmp_path):
    refused(tmp_path, r"the loss is not finite at step \d .*Lower training.rate, which is 1e\+20", "training.rate=1e20")


@pytest.mark.long
def test_a_loss_that_only_grows_is_refused(tmp_path, monkeypatch):
    once = training_modules.masked_losses
    calls = iter(range(1, 100))
    monkeypatch.setattr(
        training_modules, "masked_losses", lambda *a: {k: v * next(calls) ** 4 for k, v in once(*a).items()}
    )
    refused(tmp_path, r"training lvpruning diverges: the loss was .* Lower training.rate, which is 0.001")


def test_processes_that_cannot_share_a_batch_are_refused(tmp_path):
    run = prepared(tmp_path, "pruner=lvpruning")
    run.machine.world = 3
    with pytest.raises(ValueError, match=r"training.batch is 2, which 3 processes cannot share equally"):
        Training(run.config, run._load(), run.checkpoint, run.store, run.machine, run.config["pruner"])


def test_a_loss_that_the_method_does_not_have_is_refused(tmp_path):
    refused(
        tmp_path, r"pruner.losses has 'budget', but lvpruning has the losses answer, ratio", "+pruner.losses.budget=1"
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("pruner=btp",), "action is train, but pruner 'btp' has nothing to train"),
        (("pruner=lvpruning", "pruner.weights=none"), "action is train, but pruner.weights is 'none'"),
        (
            ("pruner=lvpruning", "model=llava15", "model.weights=random"),
            "action is train, but model.weights is random",
        ),
    ],
)
def test_a_config_that_trains_nothing_is_refused(words, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        check_config(composed("action=train", *words, f"output={tmp_path}"))
