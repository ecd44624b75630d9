"""Every config composes, and everything it names can be built."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from btp.cli.check_config import check_config
from btp.core.pruner import Pruner
from btp.runner.datasets import make_dataset
from btp.runner.pruner_lists import method_of

CONF = Path(__file__).resolve().parents[2] / "conf"
GROUPS = ("model", "pruner", "schedule", "task", "calibration", "trainer", "logger")
OPTIONS = [(g, p.stem) for g in GROUPS for p in sorted((CONF / g).glob("*.yaml"))]


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=True)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_builds(group, option, tmp_path):
    config = composed(f"{group}={option}", f"output={tmp_path}")
    path = config["model"]["path"]
    if path is not None and not (CONF.parent / "btp" / "models" / path).exists():
        pytest.skip(f"{path} is not shipped yet")
    if option in ("lmms_eval", "lm_eval"):  # their tasks are named by the user, and built in tests/lmms and tests/lm
        with pytest.raises(ValueError, match="tasks is None"):
            check_config(config)
        return
    check_config(config)
    if "path" in config[group] and group in ("task", "calibration"):  # files that a user brings
        with pytest.raises(ValueError, match=rf"{group}.path is data/[\w.]+, "):
            make_dataset(config[group]["dataset"])
    elif group in ("task", "calibration"):
        assert len(instantiate(config[group]["dataset"])) > 0
    if group == "pruner" and method_of(config["pruner"]):
        assert isinstance(instantiate(dict(method_of(config["pruner"]))), Pruner)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_says_what_it_is_and_a_command(group, option):
    first, second = (CONF / group / f"{option}.yaml").read_text().splitlines()[:2]
    assert first.startswith("# ")
    assert second.startswith("# python run.py")


def twin_of(file):
    """The file that one of conf/per_model takes its keys from: another one that it names, or itself."""
    others = OmegaConf.load(file).get("defaults", [])
    return file.with_stem(others[0]) if others else file


@pytest.mark.parametrize("file", sorted((CONF / "per_model").glob("*.yaml")), ids=lambda file: file.stem)
def test_what_a_method_needs_on_a_model(file):
    """conf/per_model/MODEL_PRUNER.yaml comes with these two, and with no others; the command line comes after it."""
    pairs = [
        (m, p) for g, m in OPTIONS if g == "model" for k, p in OPTIONS if k == "pruner" and f"{m}_{p}" == file.stem
    ]
    (model, pruner), more = pairs[0], OmegaConf.to_container(OmegaConf.load(twin_of(file)))["pruner"]
    found, elsewhere = composed(f"model={model}", f"pruner={pruner}")["pruner"], composed(f"pruner={pruner}")["pruner"]
    assert found == elsewhere | more | {"method": elsewhere["method"] | more["method"]}
    assert found != elsewhere
    assert composed(f"model={model}", "pruner=btp")["pruner"] == composed("pruner=btp")["pruner"]
    own = next(iter(more["method"]))
    word = f"pruner.method.{own}={str(elsewhere['method'][own]).lower()}"
    assert composed(f"model={model}", f"pruner={pruner}", word)["pruner"]["method"][own] == elsewhere["method"][own]
    check_config(composed(f"model={model}", f"pruner={pruner}"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages=0", "stages is 0"),
        ("stages=two", "stages is 'two'"),
        ("limit=0", "limit is 0. No samples are left"),
        ("budget.share=1.5", "budget.share is 1.5"),
        ("budget.share=0", "budget.share is 0"),
        ("budget.tokens=20", "a run has one budget"),
        ("budget.move=2", "budget.move is 2. Set budget.move to true or false"),
        ("budget.nearest=maybe", "budget.nearest is 'maybe'"),
        ("cache=all", "cache is 'all'"),
        ("cache_gib=0", "cache_gib is 0. cache=off keeps none. Set cache_gib to a number of GiB above 0"),
        ("trainer.batch=0", "Set trainer.batch to a whole number from 1 on"),
        ("model.dtype=fp8", "model.dtype is 'fp8'. Choose from: float32"),
        ("model.attention=flash", "model.attention is 'flash'"),
        ("calibration.samples=0", "calibration.samples is 0"),
    ],
)
def test_a_config_that_cannot_run_is_refused_before_anything_is_written(override, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        check_config(composed(f"output={tmp_path / 'out'}", override))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Set output to another one"):
        check_config(composed(f"output={tmp_path / 'file' / 'out'}"))


def test_calibrating_without_weights_is_refused_before_the_model_is_built():
    with pytest.raises(ValueError, match="A calibrated schedule needs a model with weights"):
        check_config(composed("model=llava15", "model.weights=random"))
    with pytest.raises(ValueError, match="A calibrated schedule needs a model with weights"):
        check_config(composed("model=llava15", "model.weights=random", "pruner=fastervlm_btp"))
