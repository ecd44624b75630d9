"""Pictures of unequal sizes: what stays of each depends on itself alone, and the mean asked is reached or said."""

import json
import os
import signal
import time

import numpy as np
import pandas as pd
import pytest
from jobs import command, job
from PIL import Image

from btp.report.tables.run_table import run_table
from btp.report.text.run_text import remarks
from btp.results.reader import read_run
from btp.schedules.serialize import restored
from families import kit

SIZES = {
    "qwen25vl": {"small": (16, 16), "wide": (200, 90), "tall": (90, 200), "big": (200, 200), "bigger": (260, 240)},
    "llava_next": {"small": (20, 20), "wide": (90, 30), "tall": (30, 84), "big": (60, 60), "bigger": (60, 40)},
}
WORDS = ["pruner=attention", "schedule=uniform", "stages=2", "task.dataset.max_new_tokens=4", "cost.enabled=false"]
WORDS += ["trainer.workers=0", "limit=null", "overlays=0", "task.dataset.shuffle_seed=null", "model.dtype=float32"]
WORDS += ["~controls.no_image"]


def asked(folder, name, order=1):
    """A table of the family's pictures, in their order or turned round."""
    folder.mkdir()
    random = np.random.default_rng(0)
    rows = []
    for picture, (width, height) in SIZES[name].items():
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{picture}.png")
        rows.append({"id": picture, "image": f"{picture}.png", "question": "what is it?", "answer": "a"})
    (folder / "questions.json").write_text(json.dumps(rows[::order]))
    return folder


def words(name, folder, *more):
    where = [f"model={name}", f"model.path={kit.checkpoint(name)}", "task=vqa_folder", f"task.path={folder}"]
    return [*where, *WORDS, *more]


def kept(run):
    """Original indices that stay, by arm, sample and stage."""
    trace = pd.read_parquet(run / "trace.parquet")
    return {(r.arm, r.sample, r.site): tuple(r.kept) for r in trace.itertuples()}


@pytest.mark.parametrize(
    ("name", "budget"),
    [("qwen25vl", "budget.share=0.5"), pytest.param("llava_next", "budget.tokens=20", marks=pytest.mark.long)],
)
def test_neither_order_nor_batch_changes_what_stays(name, budget, tmp_path):
    """And each sample is at its budget, as the whole is."""
    runs = []
    for i, (order, batch) in enumerate([(1, 1), (-1, 4)]):
        folder = asked(tmp_path / f"asked{i}", name, order)
        more = [budget, f"trainer.batch={batch}"]
        runs.append(job(tmp_path / str(i), *words(name, folder, *more)))
    assert kept(runs[0]) == kept(runs[1])
    one, two = (json.loads((run / "run.json").read_text()) for run in runs)
    assert one["budget"] == two["budget"]
    assert one["arms"] == two["arms"]
    assert "missed" not in one["budget"]
    frame = pd.read_parquet(runs[0] / "samples.parquet").query("arm == 'attention'")
    wanted = 0.5 * frame["total"] if name == "qwen25vl" else frame["total"].clip(upper=20)
    assert frame["total"].nunique() > 2
    assert (frame["tokens_avg"] - wanted).abs().max() < 0.5
    entry = next(entry for entry in one["arms"] if entry["arm"] == "attention")
    again = restored(entry)
    assert [again.tokens_avg(total, 4) for total in frame["total"]] == frame["tokens_avg"].tolist()


@pytest.mark.long
def test_a_killed_run_keeps_what_it_would_have_kept(tmp_path):
    """A resumed run solves its counts from no other samples than a whole one."""
    folder = asked(tmp_path / "asked", "qwen25vl")
    more = words("qwen25vl", folder, "budget.share=0.5", "trainer.batch=1")
    whole = kept(job(tmp_path / "whole", *more))
    out = tmp_path / "killed"
    process = command("experiment=smoke", "logger=none", "trainer=cpu", f"output={out}", *more)
    deadline = time.time() + 240
    while process.poll() is None and time.time() < deadline:
        if sum(f.read_bytes().count(b"\n") for f in out.glob(".store/answers/*/rows-0.jsonl")) >= 7:
            os.killpg(process.pid, signal.SIGKILL)
            break
        time.sleep(0.02)
    process.wait()
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL
    assert kept(job(out, *more)) == whole


def test_a_budget_above_some_pictures_is_said(tmp_path, capsys):
    """On the screen, in run.json and in the report; those pictures keep all they have."""
    folder = asked(tmp_path / "asked", "qwen25vl")
    run = job(tmp_path / "run", *words("qwen25vl", folder, "budget.tokens=30"))
    frame = pd.read_parquet(run / "samples.parquet").query("arm == 'attention'").set_index("sample")
    assert frame.loc["small", "tokens_avg"] == frame.loc["small", "total"] < 30
    about = json.loads((run / "run.json").read_text())
    assert about["budget"]["asked"] == 30
    assert about["budget"]["reached"] == pytest.approx(frame["tokens_avg"].mean(), abs=1e-4)
    assert about["budget"]["missed"]
    said = capsys.readouterr().out
    assert "budget: 30.00 visual tokens on average were asked; attention reaches " in said
    assert "budget: 30.00 visual tokens on average were asked of attention, " in said
    assert "samples have fewer than 30 before any pruning" in said
    found = read_run(run)
    texts = [remark.text for remark in remarks(found, run_table(found))]
    assert any("of the 30.00 layer-averaged visual tokens asked for" in text for text in texts)
    assert "of the 30.00 layer-averaged visual tokens asked for" in (run / "report.html").read_text()
