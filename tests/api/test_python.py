"""The Python API: a method by name around a model that is loaded, a pipeline, an evaluation, and what there is."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, pipeline

import btp
from btp.core.schedule import Schedule, Stage
from btp.pruners.fastv import FastV
from btp.runner.plan_arms import plan_arms

ROOT = Path(__file__).resolve().parents[2]
POCKET = ROOT / "btp/models/checkpoints/pocket_mini"


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (96, 96, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(POCKET).eval()


@pytest.fixture(scope="module")
def inputs():
    processor = btp.processor(POCKET)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is there ?"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    return processor(images=[picture(0)], text=[text], return_tensors="pt")


def test_importing_takes_no_torch():
    """Under 0.3 seconds of processor time, in a process of its own."""
    code = (
        "import time; t = time.process_time(); import btp, sys; print(time.process_time() - t, 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    seconds, torch_there = said.split()
    assert float(seconds) < 0.3
    assert torch_there == "False"


def test_a_method_by_name_meets_the_budget(model, inputs):
    """The yaml's FastV, moved and solved for half of 144 tokens; nothing stays behind."""
    with torch.inference_mode():
        before = model(**inputs).logits
    with btp.attach(model, "fastv", budget=0.5) as trace:
        model.generate(**inputs, max_new_tokens=2)
        assert model(**inputs).logits.shape != before.shape
    assert trace.tokens_avg == [pytest.approx(72, abs=1)] * 2
    assert any(trace.fired.values())
    assert torch.equal(model(**inputs).logits, before)


def test_settings_are_those_of_the_yaml(model, inputs):
    """A setting reaches the method; one that it does not know is named with the nearest."""
    with btp.attach(model, "fastv", budget=0.5, score="logits") as trace:
        model(**inputs)
    assert len(trace) == 1
    with pytest.raises(ValueError, match=r"Did you mean pruner\.method\.score"), btp.attach(model, "fastv", scoer="x"):
        pass
    with pytest.raises(ValueError, match="Did you mean pruner=fastv"), btp.attach(model, "fastvv"):
        pass


def test_pictures_calibrate(model, inputs, capsys):
    """BTP's stages come from the pictures; without them it says what to pass."""
    with btp.attach(model, "btp", budget=0.4, calibration=[picture(1), picture(2)]) as trace:
        model(**inputs)
    assert len(trace.fired) == 3
    assert trace.tokens_avg == [pytest.approx(57.6, abs=1)]
    with pytest.raises(ValueError, match="Pass calibration="), btp.attach(model, "btp"):
        pass
    with pytest.raises(ValueError, match="holds no picture"), btp.attach(model, "btp", calibration=[]):
        pass


def test_a_pruner_of_ones_own(model, inputs):
    """Takes its stages, and neither budget nor settings."""
    own = FastV(score="probs", query="last", seed=0)
    with btp.attach(model, own, Schedule((Stage("llm.layer.2", keep=10),))) as trace:
        model(**inputs)
    assert trace[0].stages[0].after == (10,)
    with pytest.raises(ValueError, match="pass its stages"), btp.attach(model, own, budget=0.5):
        pass
    with pytest.raises(ValueError, match="goes with a pruner of your own"), btp.attach(model, "fastv", Schedule()):
        pass


def test_what_changes_pictures_is_refused(model):
    """The down-sampled control works on pictures, which attach does not see."""
    with pytest.raises(ValueError, match=r"Use btp\.evaluate"), btp.attach(model, "downsampled"):
        pass


def test_a_pipeline(model):
    """Of transformers, as it is: inside attach it prunes, behind it not."""
    pipe = pipeline("image-text-to-text", model=model, processor=btp.processor(POCKET))
    chat = [{"role": "user", "content": [{"type": "image", "image": picture(0)}, {"type": "text", "text": "color ?"}]}]
    with btp.attach(pipe, "fastv", budget=0.5) as trace:
        (said,) = pipe(text=[chat], max_new_tokens=2)
    assert trace.tokens_avg == [pytest.approx(72, abs=1)]
    assert said
    pipe(text=[chat], max_new_tokens=2)
    assert len(trace) == 1


@pytest.mark.long
def test_an_evaluation(model, tmp_path, capsys):
    """The main job on a model in memory: all arms, found again, and the model as it was."""
    model.generation_config.temperature, model.generation_config.do_sample = 0.7, True
    more = {"limit": 3, "output": tmp_path, "overrides": ["cost.enabled=false"]}
    found = btp.evaluate(model, btp.processor(POCKET), "divprune", budget=0.3, **more)
    assert list(found.table().index) == ["unpruned", "divprune", "random", "downsampled", "oracle", "no image"]
    assert found.report.is_file()
    assert len(found.samples()) == 18
    assert model.generation_config.do_sample is True
    again = btp.evaluate(model, btp.processor(POCKET), "divprune", budget=0.3, **more)
    assert again.folder == found.folder
    assert "this run is finished" in capsys.readouterr().out
    with torch.no_grad():
        next(model.parameters()).flatten()[0] += 1
    began = time.time()
    other = btp.evaluate(model, btp.processor(POCKET), "none", **more)
    assert other.folder != found.folder
    assert (other.folder / "run.json").stat().st_mtime >= began - 1


def test_planning_has_one_owner():
    """The command line and Python solve budgets by the same function."""
    from btp.api import plan

    assert plan.build_arms.__module__ == plan_arms.__globals__["build_arms"].__module__ == "btp.runner.arms"


def test_what_there_is():
    """Every yaml by its name, with the sentence of its first line."""
    assert set(btp.methods()) == {path.stem for path in (ROOT / "conf/pruner").glob("*.yaml")}
    assert "Chen et al. 2024" in btp.methods()["fastv"]
    assert "LLaVA-1.5-7B" in btp.models()["llava15"]
    assert set(dir(btp)) >= {"attach", "evaluate", "methods", "models", "processor", "citation", "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'atach'"):
        btp.atach  # noqa: B018


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        (FastV, {}, r"method is <class .*FastV.*>\. Pass the name of a yaml"),
        ("fastv,btp", {}, "pruner=fastv,btp has several values, and this is one run"),
        ("fastv", {"overrides": "budget.nearest=2"}, r"budget\.nearest is 2"),  # one word need not be in a list
        ("fastv", {"overrides": [5]}, r"overrides is \[5\]\. Pass words"),
        ("fastv", {"overrides": None}, "overrides is None"),
        ("fastv", {"tokens": 0}, "tokens is 0. Pass the visual tokens of a usual prompt"),
        ("fastv", {"tokens": "a"}, "tokens is 'a'"),
        ("btp", {"calibration": 5}, "calibration is 5. Pass pictures or their paths"),
        ("btp", {"calibration": [5]}, r"calibration is \[5\]"),
        ("btp", {"calibration": ["none.png"]}, r"calibration names none\.png, but there is no such file"),
        ("btp", {"calibration": [picture(0)], "processor": 5}, "processor is int, which has no tokenizer"),
    ],
)
def test_arguments_of_the_wrong_kind_are_named(model, method, given, message):
    with pytest.raises(ValueError, match=message), btp.attach(model, method, **given):
        pass


def test_one_picture_calibrates_as_a_list_of_one(model, inputs):
    with btp.attach(model, "btp", budget=0.4, calibration=picture(1)) as trace:
        model(**inputs)
    assert len(trace.fired) == 3
