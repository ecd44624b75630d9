"""Loading: a LLaVA-1.5-shaped checkpoint runs the whole job; what is no checkpoint says so."""

import json
import re
import shutil

import pandas as pd
import pytest
import torch
from jobs import composed, job

from btp.models import load as loading
from btp.models.load import find_checkpoint, load
from btp.models.pocket import build_model, build_processor
from btp.tasks.pocketvqa.questions import words

SMALL = {"num_attention_heads": 2, "num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 48}


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


def test_llava15_runs_the_same_job_from_a_path(checkpoint, tmp_path):
    run = job(tmp_path, "model=llava15", f"model.path={checkpoint}", "model.dtype=float32", "limit=9")
    frame = pd.read_parquet(run / "samples.parquet")
    assert (frame["total"] == 36).all()
    assert frame[frame["arm"] == "btp"]["tokens_avg"].mean() == pytest.approx(0.22 * 36, abs=1)
    assert json.loads((run / "run.json").read_text())["inert"]["identical"]


def test_a_calibration_of_another_model_is_refused(checkpoint, tmp_path):
    run = job(tmp_path, "limit=9", "cost.enabled=false")
    with pytest.raises(ValueError, match="was made for model 'pocket'"):
        job(tmp_path, f"model.path={checkpoint}", f"calibration.artefact={run / 'calibration.yaml'}", "limit=9")


@pytest.mark.parametrize(
    ("text", "message"),
    [(":\n  - ][", "is not YAML"), ("stages: []", "it lacks identity, model, curves"), ("", "it lacks")],
)
def test_a_corrupt_calibration_is_refused(text, message, tmp_path):
    (tmp_path / "broken.yaml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        job(tmp_path, f"calibration.artefact={tmp_path / 'broken.yaml'}", "limit=9")


def test_a_missing_calibration_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        job(tmp_path, f"calibration.artefact={tmp_path / 'none.yaml'}", "limit=9")


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
    with pytest.raises(ValueError, match=re.escape("cannot be loaded as a vision-language model")):
        load(config, find_checkpoint(config), torch.device("cpu"))


def test_without_weights_and_offline_it_says_what_to_download(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=re.escape("hf download llava-hf/llava-1.5-7b-hf")):
        find_checkpoint(composed("model=llava15")["model"] | {"hub": "llava-hf/llava-1.5-7b-hf"})


def test_another_transformers_is_refused(monkeypatch):
    monkeypatch.setattr(loading.transformers, "__version__", "4.57.1")
    with pytest.raises(ValueError, match=r"transformers 4.57.1 is installed, but btp supports"):
        loading.check_library()
