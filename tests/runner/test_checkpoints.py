"""Loading: a LLaVA-1.5-shaped checkpoint runs the whole job; what is no checkpoint says so."""

import json
import re
import shlex
import shutil
import warnings

import pandas as pd
import pytest
import torch
import yaml
from jobs import composed, job, typed

from btp.cli.check_config import check_config
from btp.cli.overrides import find_fault
from btp.models.embedded.pocket import build_model, build_processor
from btp.models.loading import checks as recognise
from btp.models.loading.checkpoint import find_checkpoint
from btp.models.loading.load import load
from btp.runner.arms import shared_identity
from btp.runner.model_yamls import YAMLS, yamls_for
from btp.runner.run_identity import run_identity
from btp.tasks.pocketvqa.questions import words

SMALL = {"num_attention_heads": 2, "num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 48}
QUICK = ("limit=3", "cost.enabled=false", "overlays=0", "calibration.samples=4")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random LLaVA with LLaVA-1.5's feature layer and projector, saved with a real processor."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny-llava-1.5"
    torch.manual_seed(0)
    processor = build_processor(words(), side=48, patch=8)
    text = SMALL | {"num_hidden_layers": 6, "num_key_value_heads": 2}
    model = build_model(processor.tokenizer, side=48, patch=8, vision=SMALL, text=text)
    model.config.vision_feature_layer = -2
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.long
def test_llava15_runs_the_same_job_from_a_path(checkpoint, tmp_path):
    words = ["model=llava15", f"model.path={checkpoint}", "model.dtype=float32", "limit=9", "calibration.samples=8"]
    run = job(tmp_path, *words, "overlays=1")
    frame = pd.read_parquet(run / "samples.parquet")
    assert (frame["total"] == 36).all()
    assert frame[frame["arm"] == "btp"]["tokens_avg"].mean() == pytest.approx(0.22 * 36, abs=1)
    assert json.loads((run / "run.json").read_text())["inert"]["identical"]


@pytest.mark.slow
def test_what_a_checkpoint_asks_of_generation_changes_no_answer_and_is_said_once(checkpoint, tmp_path, capsys):
    """Calibrated, answered with every arm, checked and timed without beams, penalties and a missing cache."""
    odd = tmp_path / "odd"
    shutil.copytree(checkpoint, odd)
    keys = {"num_beams": 2, "repetition_penalty": 1.4, "use_cache": False, "return_dict_in_generate": True}
    for name in ("config.json", "generation_config.json"):
        about = json.loads((odd / name).read_text())
        (odd / name).write_text(json.dumps(about | (keys if name != "config.json" else {"use_cache": False})))
    said = {}
    for folder in (checkpoint, odd):
        words = ["model=llava15", f"model.path={folder}", "model.dtype=float32", "limit=9", "calibration.samples=8"]
        words += ["overlays=0", "~pruner@controls.downsampled"]
        run = job(tmp_path / f"of-{folder.name}", *words)
        said[folder] = pd.read_parquet(run / "samples.parquet").set_index(["arm", "sample"])["prediction"]
        about = json.loads((run / "run.json").read_text())
        assert about["inert"]["identical"]
        notes = about.get("notes", [])
        screen = capsys.readouterr().out
        assert [screen.count(note) for note in notes] == [1] * len(notes) == [1] * (folder is odd)
    assert (said[checkpoint] == said[odd]).all()
    listed = "num_beams=2, repetition_penalty=1.4, return_dict_in_generate=True, use_cache=False"
    assert notes[0].endswith(f"is set aside: {listed}")


@pytest.mark.long
def test_a_calibration_of_another_model_is_refused(checkpoint, tmp_path):
    run = job(tmp_path, *QUICK)
    with pytest.raises(ValueError, match="was made for model 'pocket_mini'"):
        job(tmp_path, f"model.path={checkpoint}", f"calibration.artifact={run / 'calibration.yaml'}", *QUICK)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (":\n  - ][", "cannot be read"),
        ("stages: []", "identity is missing"),
        ("", "it holds None, not keys with values"),
    ],
)
def test_a_corrupt_calibration_is_refused(text, message, tmp_path):
    (tmp_path / "broken.yaml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        job(tmp_path, f"calibration.artifact={tmp_path / 'broken.yaml'}", "limit=9")


def test_a_missing_calibration_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none\.yaml, but there is no such file"):
        job(tmp_path, f"calibration.artifact={tmp_path / 'none.yaml'}", "limit=9")


@pytest.mark.long
def test_random_weights_measure_cost_alone(tmp_path):
    small = [f"model.config.text_config.{k}={v}" for k, v in SMALL.items()]
    small += ["model.config.text_config.num_key_value_heads=2", "model.config.text_config.num_hidden_layers=24"]
    small += [f"model.config.vision_config.{k}={v}" for k, v in SMALL.items()]
    words = ["model=llava15", "model.weights=random", "model.dtype=float32", *small]
    run = job(tmp_path, *words, "schedule=paper")
    costs = json.loads((run / "cost.json").read_text())
    assert costs["btp"]["tokens_avg"] == pytest.approx((2 * 576 + 3 * 288 + 6 * 144 + 6 * 48) / 24)
    assert costs["btp"]["flops_prefill"] == pytest.approx(costs["btp"]["flops_prefill_measured"], rel=0.01)
    assert not (run / "samples.parquet").exists()
    with pytest.raises(ValueError, match="A calibrated schedule needs a model with weights"):
        job(tmp_path, *words)


def test_a_model_without_the_signal_is_refused_before_anything_runs(tmp_path):
    small = [f"model.config.text_config.{k}={v}" for k, v in SMALL.items()]
    small += [f"model.config.vision_config.{k}={v}" for k, v in SMALL.items()]
    words = ["model=llava15", "model.weights=random", "model.dtype=float32", *small]
    words += ["model.config.text_config.num_key_value_heads=2"]
    words += ["model.config.vision_feature_select_strategy=full", "pruner=fastervlm"]
    with pytest.raises(ValueError, match="a vision tower whose tokens cannot be followed yet"):
        job(tmp_path, *words)


def test_paths_that_are_no_checkpoint_say_what_to_do(checkpoint, tmp_path):
    config = composed("model=llava15")["model"]
    with pytest.raises(ValueError, match=r"holds no config.json"):
        find_checkpoint(config | {"path": str(tmp_path)})
    shutil.copytree(checkpoint, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ValueError, match="no weights"):
        find_checkpoint(config | {"path": str(tmp_path / "bare")})
    with pytest.raises(ValueError, match="Did you mean"):
        find_checkpoint(config | {"path": str(tmp_path / "bar")})
    assert find_checkpoint(config | {"path": str(tmp_path / "bare"), "weights": "random"})


def test_a_broken_checkpoint_says_which(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"not weights")
    config = composed("model=llava15", f"model.path={tmp_path / 'broken'}", "model.dtype=float32")["model"]
    with pytest.raises(ValueError, match=r"model.safetensors is not a file of safetensors"):
        load(config, find_checkpoint(config), torch.device("cpu"))


def test_without_weights_and_offline_it_says_what_to_download(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=re.escape("hf download llava-hf/llava-1.5-7b-hf")):
        find_checkpoint(composed("model=llava15")["model"] | {"hub": "llava-hf/llava-1.5-7b-hf"})


def test_another_transformers_is_refused(monkeypatch):
    monkeypatch.setattr(recognise.transformers, "__version__", "4.57.1")
    with pytest.raises(
        ValueError,
        match=r"transformers 4.57.1 is installed, but btp supports 5.20 up to.*tested with 5.20 and 5.23 and 5.24",
    ):
        recognise.check_library()


def test_a_transformers_that_was_not_tried_is_said(monkeypatch):
    """By its version; those that were are silent."""
    for version in ("5.22.2", "5.25.0"):
        monkeypatch.setattr(recognise.transformers, "__version__", version)
        with pytest.warns(
            UserWarning, match=f"transformers {version} is installed, but btp was tested with 5.20 and 5.23 and 5.24"
        ):
            recognise.check_library()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for version in ("5.23.0", "5.24.1"):
            monkeypatch.setattr(recognise.transformers, "__version__", version)
            recognise.check_library()


@pytest.mark.slow
def test_a_spread_model_runs_the_same_job(checkpoint, tmp_path):
    """Half of its layers on disk: nothing moves the model once it is loaded, and every answer is the same."""
    words = [f"model.path={checkpoint}", "schedule=uniform", "budget.share=0.6", "limit=9", "cost.enabled=false"]
    where = {f"model.language_model.layers.{i}": "disk" if i % 2 else "cpu" for i in range(6)}
    where |= {f"model.{part}": "cpu" for part in ("vision_tower", "multi_modal_projector")}
    where |= {f"model.language_model.{part}": "cpu" for part in ("embed_tokens", "norm", "rotary_emb")} | {
        "lm_head": "cpu"
    }
    spread = ", ".join(f"{module}: {place}" for module, place in where.items())
    one = job(tmp_path / "one", *words)
    two = job(tmp_path / "two", *words, f"model.device_map={{{spread}}}")
    assert one.name == two.name
    assert json.loads((two / "run.json").read_text())["inert"]["identical"]
    pd.testing.assert_frame_equal(*(pd.read_parquet(run / "samples.parquet") for run in (one, two)))


def test_a_run_is_named_by_what_changes_its_answers():
    """Not by where the model lies or computes; arms and runs alike."""
    base = composed()

    def names(**keys):
        config = base | {"model": base["model"] | keys}
        return run_identity(config, "abc"), shared_identity(config, "abc")

    for key, value in {"device_map": "auto", "path": "/x", "hub": "a/b", "revision": "v1", "download": True}.items():
        assert names(**{key: value}) == names()
    changes = {"quantize": "4bit", "processor": {"max_pixels": 9}, "dtype": "bfloat16", "attention": "eager"}
    for key, value in (changes | {"adapter": "btp.models.x.X", "trust_remote_code": True}).items():
        assert all(a != b for a, b in zip(names(**{key: value}), names(), strict=True)), key


def test_the_wrong_family_names_the_right_yaml(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "other", ignore=shutil.ignore_patterns("*.safetensors"))
    about = json.loads((folder / "config.json").read_text())
    for family, message in {
        "qwen2_5_vl": "is for llava checkpoints, but the one in .* is qwen2_5_vl. Choose model=qwen25vl with",
        "unheard_of": "is unheard_of. No yaml in conf/model is for that family; docs/models.md says how to write one",
    }.items():
        (folder / "config.json").write_text(json.dumps(about | {"model_type": family}))
        with pytest.raises(ValueError, match=message):
            check_config(
                composed("model=llava15", "model.weights=random", f"model.path={folder}", f"output={tmp_path}")
            )
        with pytest.raises(ValueError, match=message):
            job(tmp_path, "model=llava15", "model.weights=random", f"model.path={folder}")


@pytest.mark.long
def test_every_yaml_names_its_family():
    """So that the right one can be named."""
    for path in YAMLS.glob("*.yaml"):
        about = yaml.safe_load(path.read_text())
        assert about["name"] == path.stem
        assert about["config"]["model_type"]
        assert (path.stem in yamls_for(about["config"]["model_type"])) == bool(about["hub"])


@pytest.mark.long
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.path=nowhere", "model.path is nowhere, but there is no such folder"),
        ("model.path=checkpoints/pockett", "there is no such folder. Did you mean checkpoints/pocket? Set model.path"),
        ("model.path=pocket/checkpoints/pocket", "no such folder. Did you mean checkpoints/pocket? Set model.path"),
        ("model.path=cont", "no such folder. Did you mean conf? Set model.path"),
        ("model.path=run.py", "model.path is run.py, which is a file"),
        ("model.path=conf", "model.path is conf, which holds no config.json"),
        ("model.revision=v1", "model.revision is v1, which says what to take from a hub"),
        ("model.quantize=3bit", "model.quantize is '3bit'. Choose from: null, 8bit, 4bit"),
        ("model.trust_remote_code=maybe", "model.trust_remote_code is 'maybe'. Set model.trust_remote_code to true or"),
    ],
)
def test_what_needs_no_torch_is_refused_first(word, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_config(composed(word, f"output={tmp_path}"))


def test_an_embedded_model_that_does_not_ship_says_how_it_is_trained(tmp_path):
    """No other model is proposed in its place."""
    words = ["model.name=coming", "model.path=checkpoints/coming", f"output={tmp_path}"]
    with pytest.raises(ValueError, match="the weights of coming do not ship") as error:
        check_config(composed(*words))
    assert "python -m experiments.embedded.train coming" in str(error.value)
    assert "Did you mean" not in str(error.value)


def test_random_weights_refuse_what_has_no_effect_first(tmp_path):
    for word in ("model.quantize=4bit", "model.device_map=auto"):
        with pytest.raises(ValueError, match=r"but model.weights is random: that builds the model on one device"):
            check_config(composed("model=llava15", "model.weights=random", word, f"output={tmp_path}"))


def test_the_command_line_says_it_in_a_line_and_names_the_page(tmp_path):
    code, said = typed("model.path=checkpoints/pocke", f"output={tmp_path}")
    assert code == 1
    assert said.startswith("error: model.path is checkpoints/pocke, but there is no such folder.")
    assert said.splitlines()[1:] == ["  see docs/models.md"]


@pytest.mark.long
def test_the_page_on_models_lists_every_yaml_and_its_commands_compose():
    page = (YAMLS.parents[1] / "docs" / "models.md").read_text()
    assert {path.stem for path in YAMLS.glob("*.yaml")} == set(
        re.findall(r"^\| `(\w+)` \| (?:[\w-]+/|embedded)", page, re.M)
    )
    commands = [shlex.split(line, comments=True) for line in page.splitlines() if line.startswith("python run.py")]
    assert len(commands) > 10
    for line in commands:
        assert find_fault(YAMLS.parent, line[2:]) is None, line
