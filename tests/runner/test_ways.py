"""Whole runs of models that name classes or find objects: from config to report."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from jobs import job
from transformers import AutoConfig, AutoImageProcessor
from vision_models import save

from btp.pruners.bavit import BAViT
from btp.results.reader import read_run
from btp.results.status import UNPRUNED
from btp.runner.explain.answer import explain
from btp.runner.identity import pictures

pytestmark = pytest.mark.long

QUICK = ("limit=6", "overlays=2", "cost.repeats=2", "cost.warmup=0", "trainer.batch=4", "budget.share=0.5")
TASKS = {"pocket_action": "pocketmoves", "pocket_det": "pocketboxes", "pocket_vim": "pocketdigits"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of random selection on each model, by its name."""
    root = tmp_path_factory.mktemp("vision")

    def run(name):
        path = save(name, root / name)
        model = (f"model={name}", f"model.path={path}", f"task={TASKS[name]}")
        return job(root / "out", *model, "pruner=random", *QUICK)

    made = {}
    return lambda name: made.setdefault(name, None) or made.update({name: run(name)}) or made[name]


@pytest.mark.parametrize(
    ("name", "unit", "total", "controls"),
    [
        ("pocket_action", "tubes", 512, ["fewer_frames"]),
        ("pocket_det", "patches", 144, ["downsampled", "oracle_boxes"]),
        ("pocket_vim", "patches", 64, ["downsampled"]),
    ],
)
def test_a_run_goes_from_config_to_report(runs, name, unit, total, controls):
    folder = runs(name)
    run = read_run(folder)
    assert run.run["state"] == "finished"
    assert run.unit == unit
    assert run.run["inert"] == {"checked": 6, "identical": True, "max_logit_difference": 0.0}
    assert [arm.arm for arm in run.arms] == [UNPRUNED, "random", *controls]
    page = (folder / "report.html").read_text()
    assert f"of {total} {unit}, averaged over the layers" in page
    for arm in run.arms[1:]:
        rows = run.rows(arm.arm)
        assert (rows["total"] == total).all()
        assert rows["tokens_avg"].mean() == pytest.approx(total / 2, rel=0.02)
        assert (rows["kl"] > 0).all()
        cost, base = run.cost[arm.arm], run.cost[UNPRUNED]
        assert cost["tokens_avg"] == pytest.approx(total / 2, rel=0.02)
        assert cost["flops_model"] < base["flops_model"]
        assert cost["gmacs"] == pytest.approx(cost["flops_model"] / 2e9)
        assert cost["per_second"] == pytest.approx(1e3 / cost["forward_ms"]["median"], rel=1e-6)
    assert (run.rows(UNPRUNED)["agreement"] == 1).all()
    assert len(list((folder / "overlays").glob("*.png"))) == 2


def test_classes_are_summed_up_as_top_1_and_top_5(runs):
    run = read_run(runs("pocket_vim"))
    for arm in run.arms:
        found = run.metrics(arm.arm)
        assert found["top1"] == run.rows(arm.arm)["score"].mean()
        assert found["top1"] <= found["top5"] <= 1
    assert set(run.samples["prediction"]) <= set("0123456789")


def test_boxes_are_summed_up_as_coco_does(runs):
    run = read_run(runs("pocket_det"))
    assert set(run.metrics(UNPRUNED)) == {"AP", "AP50", "AP75", "AP_small"}
    assert run.samples["agreement"].between(0, 1).all()


def test_a_clip_is_drawn_as_a_strip_of_its_frames(runs):
    folder = runs("pocket_action")
    index = json.loads((folder / "pictures" / "index.json").read_text())
    (view,) = next(iter(index.values()))["views"]
    assert view["grid"] == [16, 32]  # two rows of four frames of 8 x 8 tubes
    tokens = np.array(view["tokens"]).reshape(16, 32)
    assert tokens[0, :9].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 64]
    assert tokens[8, 0] == 4 * 64
    trace = pd.read_parquet(folder / "trace.parquet")
    kept = trace[trace["arm"] == "fewer_frames"]["kept"].iloc[0]
    assert {i // 64 for i in kept} == {1, 3, 5, 7} or len({i // 64 for i in kept}) == 4


@pytest.mark.parametrize(
    ("name", "views"), [("pocket_vim", (8, 8)), ("pocket_det", (12, 12)), ("pocket_action", (16, 32))]
)
def test_a_sample_is_explained(runs, name, views):
    run = read_run(runs(name))
    sample = run.samples["sample"].iloc[0]
    life = explain(run.path, sample)
    assert [view.grid for view in life.views] == [views]
    assert all(stage.kept == stage.recorded for stage in life.stages)
    assert life.pruned.text == run.rows("random").loc[sample, "prediction"]
    assert life.kl == pytest.approx(run.rows("random").loc[sample, "kl"], abs=1e-4)
    assert life.unit == ("tubes" if name == "pocket_action" else "patches")
    assert life.question in ("Which class is it?", "What is where?")
    kinds = [sorted(mark["kind"] for mark in marks) for marks in life.marks]
    if name == "pocket_det":
        truth = len(life.boxes)
        assert all(found.count("matched") + found.count("missed") == truth for found in kinds)
        assert "with random" in life.boxes_said()
    else:
        assert kinds == [[], []]


def test_a_trained_classifier_is_explained_with_its_own_weights(runs, tmp_path):
    run, shape = read_run(runs("pocket_det")), {"layers": 1, "width": 12, "heads": 1, "patch": 8, "grid": 12}
    classifier = BAViT(select="budget", threshold=0.5, background=0, floor=0, seed=7, **shape)
    folder = Path(run.config["model"]["path"])
    seen = pictures(AutoImageProcessor.from_pretrained(folder), AutoConfig.from_pretrained(folder))
    card = {"format": 1, "pruner": "bavit", "digest": classifier.save(tmp_path / "own")}
    card |= {"host": {"name": "pocket_det", "pictures": seen}}
    (tmp_path / "own" / "trained.yaml").write_text(yaml.safe_dump(card))
    words = ("model=pocket_det", f"model.path={folder}", "pruner=bavit", f"pruner.weights={tmp_path / 'own'}")
    mine = (*words, "pruner.method.layers=1", "pruner.method.heads=1", "cost.enabled=false", "controls=null")
    found = job(tmp_path / "out", *mine, "limit=2", "overlays=0", "budget.share=0.5")
    life = explain(found, "1")
    assert all(stage.same for stage in life.stages)
    assert set(life.stages[0].scores) == {"foreground"}
    shutil.rmtree(tmp_path / "own")
    with pytest.raises(ValueError, match=r"pruner.weights is .*own, but it holds no trained.yaml"):
        explain(found, "1")


def test_tokens_merge_in_every_layer_of_a_detector(tmp_path):
    """ToMe as it stands in its yaml: what it says of a projector is left out where there is none."""
    path = save("pocket_det", tmp_path / "pocket_det")
    quick = ("limit=2", "overlays=0", "cost.enabled=false", "budget.share=0.6")
    words = ("model=pocket_det", f"model.path={path}", "task=pocketboxes", "pruner=tome")
    run = read_run(job(tmp_path / "out", *words, *quick))
    stages = run.trace[run.trace["arm"] == "tome"]
    assert set(stages["site"]) == {f"vision.mlp.{i}" for i in range(6)}
    assert stages["merged"].map(len).sum() > 0
    assert run.rows("tome")["tokens_avg"].mean() == pytest.approx(0.6 * 144, abs=1)
