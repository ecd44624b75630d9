"""A model without weights: formulas first, then what measuring takes, then measuring, where it is cheap or asked."""

import json

import pytest
import torch
from jobs import composed, job

from btp.cli.check_config import check_config
from btp.models.loading.load import sketch
from btp.runner.evaluation.forecast import CHEAP_S, Forecast

pytestmark = pytest.mark.long

SMALL = {"num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 48}
WORDS = ["model=llava15", "model.weights=random", "model.dtype=float32", "schedule=paper"]
WORDS += [f"model.config.text_config.{k}={v}" for k, v in SMALL.items()]
WORDS += [f"model.config.vision_config.{k}={v}" for k, v in SMALL.items()]
WORDS += ["model.config.text_config.num_key_value_heads=2", "model.config.text_config.num_hidden_layers=24"]
WORDS += ["cost.repeats=2", "cost.warmup=0", "cost.output_tokens=2"]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
SIZES = ("tokens_avg", "flops_visual_pdrop", "kv_mib")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Run folders of the same model, not measured and measured."""
    root = tmp_path_factory.mktemp("outputs")
    return [job(root / name, *WORDS, *more) for name, more in (("no", ["cost.measure=false"]), ("yes", []))]


def test_formulas_need_no_measurement(written):
    formula, measured = (json.loads((run / "cost.json").read_text()) for run in written)
    assert list(formula) == ["hardware", "unpruned", "btp", "random", "downsampled", "no_image"]
    for arm in list(formula)[1:]:
        assert {k: formula[arm][k] for k in SIZES} == pytest.approx({k: measured[arm][k] for k in SIZES})
        assert formula[arm]["flops_prefill"] <= measured[arm]["flops_prefill"]
    assert formula["unpruned"]["flops_prefill"] == measured["unpruned"]["flops_prefill"]
    assert "prefill_ms" not in formula["btp"]
    assert measured["btp"]["prefill_ms"]["median"] > 0


def test_run_json_says_what_it_would_have_taken(written):
    states = [json.loads((run / "run.json").read_text()) for run in written]
    assert [state["measurement"]["measured"] for state in states] == [False, True]
    assert all(state["state"] == "finished" for state in states)
    assert all(state["measurement"]["seconds"] > 0 and state["measurement"]["gib"] >= 0 for state in states)
    assert ["load" in state["phases"] for state in states] == [False, True]  # no weights are made for formulas


def test_the_screen_shows_formulas_before_anything_is_measured(tmp_path, capfd):
    job(tmp_path, *WORDS, "cost.measure=false", "pruner=fastv")
    said = capfd.readouterr().out
    assert said.index("flops_visual_pdrop") < said.index("measuring 4 arms on the CPU takes about")
    assert "not measured: cost.measure=true measures all the same" in said
    assert said.count("flops_visual_pdrop") == 1


@pytest.mark.parametrize(
    ("found", "device", "cheap"),
    [
        (Forecast(CHEAP_S, 10, 20), CPU, True),
        (Forecast(CHEAP_S + 1, 10, 20), CPU, False),
        (Forecast(1, 30, 20), CPU, False),
        (Forecast(1, 30, None), CPU, True),
        (Forecast(9e9, 10, 20), GPU, True),
    ],
)
def test_cheap_is_a_small_model_or_a_gpu(found, device, cheap):
    assert found.cheap(device) == cheap


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "about 1 s and"), (89, "89 s"), (600, "10 min"), (36000, "10.0 h")]
)
def test_time_and_memory_are_said(seconds, said):
    text = Forecast(seconds, 14 * 2**30, 20 * 2**30).said(4, CPU)
    assert text.startswith("measuring 4 arms on the CPU takes about ")
    assert said in text
    assert text.endswith("and 14.0 GiB of memory (20.0 GiB are free)")


def test_a_7b_model_is_sized_without_its_memory():
    """The architecture of LLaVA-1.5-7B, and its inputs, without a byte of weights."""
    host = sketch(composed("model=llava15")["model"], None)
    assert {p.device.type for p in host.model.parameters()} == {"meta"}
    assert sum(p.numel() for p in host.model.parameters()) > 7e9
    inputs = host.example(1, 5, height=336, width=336)
    assert inputs["input_ids"].shape == (1, 581)
    assert int(host.visual_mask(inputs).sum()) == 576


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["cost.measure=maybe", "model=llava15", "model.weights=random"],
            "cost.measure is 'maybe'. Choose from: auto,",
        ),
        (["cost.measure=false"], "cost.measure is false, which has an effect on a model without weights only"),
        (["cost.measure=true"], "With weights, cost.enabled says whether costs are measured"),
    ],
)
def test_what_cannot_be_asked_is_refused(words, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        check_config(composed(*words, "schedule=uniform", f"output={tmp_path}"))
