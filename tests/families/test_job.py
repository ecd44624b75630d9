"""The whole job on every family: calibrate, answer, controls, inertness, cost, report."""

import json

import numpy as np
import pandas as pd
import pytest
from jobs import job
from PIL import Image

from btp.measure.architecture import COMPUTED
from btp.report.drawing_errors import Spared
from btp.report.pages.sample_cards import cards
from btp.results.reader import read_run
from btp.runner.datasets import make_dataset
from btp.runner.evaluation.data import Collate
from btp.schedules.meet import passing, pictures_of
from families import kit

pytestmark = pytest.mark.long

NAMES = sorted(kit.families())
SHARE = 0.4
QUESTIONS = [
    {"id": "none", "images": [], "question": "yes or no?", "answer": "yes"},
    {"id": "wide", "image": "0.png", "question": "what is shown?", "answer": "a", "boxes": [[0.1, 0.2, 0.5, 0.6]]},
    {"id": "both", "images": ["1.png", "2.png"], "question": "what is left of the circle in both?", "answer": "b"},
    {"id": "tall", "image": "1.png", "question": "what is it, in a single word?", "answer": "c"},
]
PICTURES = ((60, 40), (30, 84), (48, 48))  # width, height
SMALL = ("model.dtype=float32", "stages=2", f"budget.share={SHARE}", "limit=4", "overlays=4", "trainer.workers=0")
QUICK = ("cost.repeats=1", "cost.warmup=0", "cost.output_tokens=2", "calibration.samples=4", "calibration.batch=2")


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Questions about pictures of unequal sizes: about none, one, and two of them."""
    folder = tmp_path_factory.mktemp("questions")
    random = np.random.default_rng(0)
    for i, (width, height) in enumerate(PICTURES):
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    (folder / "questions.json").write_text(json.dumps(QUESTIONS))
    return folder


def words(name, folder):
    where = (f"model={name}", f"model.path={kit.checkpoint(name)}", "task=vqa_folder", f"task.path={folder}")
    return (*where, "task.dataset.max_new_tokens=4", *SMALL, *QUICK)


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_job(name, asked, tmp_path):
    run = job(tmp_path, *words(name, asked))
    about = json.loads((run / "run.json").read_text())
    assert about["state"] == "finished"
    assert about["inert"] == {"checked": 4, "identical": True, "max_logit_difference": 0.0}
    frame = pd.read_parquet(run / "samples.parquet")
    every = {arm: rows.set_index("sample") for arm, rows in frame.groupby("arm")}
    assert set(every) == {"unpruned", "btp", "random", "downsampled", "no_image"}
    check_budget(about, every)
    check_costs(name, json.loads((run / "cost.json").read_text()))
    check_pictures(name, run, asked)


def check_budget(about, every):
    """A share is one of each sample's own tokens, however many a picture makes."""
    total = every["unpruned"]["total"]
    assert total["none"] == 0
    assert (total.drop("none") > 0).all()
    for arm in ("btp", "random", "downsampled"):
        tokens = every[arm]["tokens_avg"]
        assert (tokens - SHARE * total).abs().max() < 2  # whole tokens at each of two stages
        assert tokens.mean() == pytest.approx(SHARE * total.mean(), abs=0.8)
    assert about["budget"]["asked"] == pytest.approx(SHARE * total.mean(), abs=1e-3)
    assert about["budget"]["reached"] == pytest.approx(every["btp"]["tokens_avg"].mean(), abs=1e-3)
    assert every["no_image"]["tokens_avg"].max() == 0


def check_costs(name, costs):
    assert set(costs) == {"hardware", "unpruned", "btp", "random", "downsampled", "no_image"}
    unpruned, btp = costs["unpruned"], costs["btp"]
    for cost in (unpruned, btp):
        assert cost["prefill_ms"]["median"] > 0
        assert cost["kv_mib"] == pytest.approx(cost["kv_mib_measured"])
        if kit.loaded(name).host.config.model_type in COMPUTED:
            assert cost["flops_prefill"] == pytest.approx(cost["flops_prefill_measured"], rel=0.01)
        else:
            assert cost["flops_prefill"] == cost["flops_prefill_measured"]
    for key in ("tokens_avg", "kv_mib", "flops_visual_pdrop", "flops_prefill"):
        assert btp[key] < unpruned[key]


def check_pictures(name, folder, asked):
    """Every token of the first picture that lies on a grid is on one of the views, once; what stayed is drawn there."""
    run = read_run(folder)
    assert set(run.pictures) == {"wide", "both", "tall"}
    assert {path.stem for path in (folder / "overlays").glob("*.png")} == set(run.pictures)
    assert (folder / "report.html").stat().st_size > 10_000
    loaded = kit.loaded(name)
    for sample in make_dataset(run.config["task"]["dataset"]):
        if sample.id not in run.pictures:
            continue
        layout = loaded.host.layout(Collate(loaded.processor)([sample]).inputs)
        visual = layout.visual[0]
        first = (layout.image[0][visual] == 0) & (layout.coord[0][visual][:, 1] >= 0)
        views = run.pictures[sample.id].views
        drawn = [view.drawn for view in views]
        assert sorted(token for tokens in drawn for token in tokens) == first.nonzero().flatten().tolist()
        assert all(len(tokens) == view.grid[0] * view.grid[1] for tokens, view in zip(drawn, views, strict=True))
    for card in cards(run, Spared()):
        assert card["drawable"]
        shown = [stage for strip in card["strips"] if strip["arm"] == "downsampled" for stage in strip["stages"]]
        assert len(shown) == len(card["picture"]["views"])
        assert all(stage["kept"] for stage in shown), "a lattice keeps something of every view"


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision", "idefics3"])
def test_tiles_that_fill_a_batch_are_not_counted(name):
    """Pictures of fewer tiles are filled up; a row's own pictures are what passes the tower."""
    a, _, c = kit.families()[name].sizes
    one, other = ([[size, "what is it?"]] for size in (a, c))
    counts = [pictures_of(kit.batch(name, row)) for row in (one, other)]
    assert counts[0] != counts[1]
    together = kit.batch(name, [*one, *other])["pixel_values"]
    assert passing(together) == sum(counts) < together.shape[:2].numel()


def test_without_any_picture_there_is_nothing_to_prune(asked, tmp_path):
    (tmp_path / "questions.json").write_text(json.dumps(QUESTIONS[:1]))
    with pytest.raises(ValueError, match="No sample shows a picture, so there is no visual token to prune"):
        job(tmp_path / "out", *words("llava15", tmp_path))


def test_a_budget_in_tokens_is_the_same_for_every_sample(asked, tmp_path):
    """Where pictures differ, a number of tokens is met by each that has as many."""
    more = ("budget.share=null", "budget.tokens=20", "schedule=uniform", "cost.enabled=false")
    run = job(tmp_path, *words("qwen25vl", asked), *more)
    samples = pd.read_parquet(run / "samples.parquet")
    reached = samples[samples["arm"] == "btp"].set_index("sample")["tokens_avg"]
    for sample in ("wide", "tall", "both"):
        assert reached[sample] == pytest.approx(20, abs=0.75)
    assert reached["none"] == 0


WIDTH = ("hidden_size=32", "intermediate_size=48", "num_hidden_layers=6", "num_attention_heads=4")
TOWER = ("hidden_size=16", "intermediate_size=24", "num_attention_heads=2", "num_hidden_layers=3")
PACKED = ("hidden_size=32", "intermediate_size=48", "depth=4", "num_heads=2", "out_hidden_size=32")
ROPE = "model.config.text_config.rope_parameters.mrope_section=[2,1,1]"
SHRUNK = {
    "llava_next": (TOWER, ("num_key_value_heads=4",), ()),
    "qwen25vl": ((*PACKED, "fullatt_block_indexes=[1,3]"), ("num_key_value_heads=2",), (ROPE,)),
    "internvl3": (TOWER, ("num_key_value_heads=2", "vocab_size=152000"), ()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHRUNK)
def test_costs_without_weights(name, tmp_path):
    """The real shapes of pictures and prompts, in a narrow model; the formula agrees with what torch counts."""
    vision, text, more = SHRUNK[name]
    small = [f"model.config.text_config.{word}" for word in (*WIDTH, *text)]
    small += [f"model.config.vision_config.{word}" for word in vision]
    where = (f"model={name}", "model.weights=random", "model.dtype=float32", "schedule=uniform", "stages=2")
    run = job(tmp_path, *where, *small, *more, f"budget.share={SHARE}", *QUICK[:3])
    costs = json.loads((run / "cost.json").read_text())
    total = costs["unpruned"]["tokens_avg"]
    assert total > 1000
    assert costs["btp"]["tokens_avg"] == pytest.approx(SHARE * total, abs=1)
    for arm in ("unpruned", "btp", "random", "no_image"):
        assert costs[arm]["flops_prefill"] == pytest.approx(costs[arm]["flops_prefill_measured"], rel=0.01)
    assert costs["btp"]["flops_prefill"] < costs["unpruned"]["flops_prefill"]
    assert not (run / "samples.parquet").exists()
