"""Several views of a clip: one answer by their mean probabilities, the cost of one."""

import numpy as np
import pytest
import torch
from jobs import job
from PIL import Image
from vision_models import save

from btp.models.loading.load import load
from btp.results.reader import read_run
from btp.results.status import UNPRUNED
from btp.runner.evaluation.ways.single_forward import Look
from btp.tasks.classes.clips import Clips
from btp.tasks.classes.task import Classes

pytestmark = pytest.mark.long

CLASSES = [str(i) for i in range(24)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three clips of 20 frames, wider than high."""
    root, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    for name in "abc":
        (root / name).mkdir()
        for i in range(20):
            Image.fromarray(rng.integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    (root / "val.csv").write_text("a 3\nb 5\nc 3\n")
    return root


def test_a_run_averages_views_and_costs_one(files, tmp_path):
    folder = save("pocket_action", tmp_path / "pocket_action")
    words = ("model=pocket_action", f"model.path={folder}", "task=clips", f"task.path={files}", "pruner=random")
    views = ("reader.frames=16", "reader.stride=null", "reader.clips=2", "reader.crops=3", f"classes={CLASSES}")
    quick = ("budget.share=0.5", "overlays=1", "cost.repeats=1", "cost.warmup=0", "trainer.batch=2")
    run = read_run(job(tmp_path / "out", *words, *(f"task.dataset.{word}".replace(" ", "") for word in views), *quick))
    task = Classes("clips", Clips(str(files), "val.csv", None, 16, None, 2, 3), CLASSES)
    loaded = load(run.config["model"], folder, torch.device("cpu"))
    rows = run.rows(UNPRUNED)
    for sample in (task[i] for i in range(3)):
        clips = [list(sample.images)[view * 16 : view * 16 + 16] for view in range(6)]
        pixels = loaded.processor(clips, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            each = loaded.host.model(pixel_values=pixels).logits.softmax(-1)
        assert rows.loc[sample.id, "prediction"] == str(int(each.mean(0).argmax()))
        made = Look(loaded.processor, 6)([sample]).inputs["pixel_values"]
        assert torch.equal(made[0], pixels[[3, 0, 1, 2, 4, 5]])  # the middle one first, which reports draw
        assert torch.equal(Look(loaded.processor, 6, every=False)([sample]).inputs["pixel_values"], pixels[3:4])
    assert (rows["total"] == 512).all()
    assert (run.rows("random")["kl"] > 0).all()
    assert run.cost[UNPRUNED]["gmacs"] < 1  # 0.7 M parameters at 512 tubes, not six times that
    assert len(list((run.path / "overlays").glob("*.png"))) == 1
