"""A whole run on videos: from config to report, with METok and the controls of frames, and one sample explained."""

import json

import pandas as pd
import pytest
from jobs import job

from btp.results.reader import read_run
from btp.results.status import UNPRUNED
from btp.runner.explain.answer import explain

QUICK = ("limit=4", "overlays=2", "cost.repeats=1", "cost.warmup=0", "cost.output_tokens=2", "trainer.batch=2")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """METok on pocket_video with its matcher."""
    out = tmp_path_factory.mktemp("video") / "out"
    return read_run(job(out, "model=pocket_video", "pruner=metok", "budget.share=0.25", *QUICK))


@pytest.mark.slow
def test_from_config_to_report(run):
    """Inert, all controls, the cost of a video with its matcher, frames in the pictures."""
    assert run.run["state"] == "finished"
    assert run.run["inert"] == {"checked": 4, "identical": True, "max_logit_difference": 0.0}
    assert [arm.arm for arm in run.arms] == [UNPRUNED, "metok", "random", "no_image", "uniform_frames", "one_frame"]
    assert (run.rows("one_frame")["tokens_avg"] == 16).all()
    assert (run.rows("no_image")["tokens_avg"] == 0).all()
    assert (run.rows(UNPRUNED)["total"] == 257).all()
    cost = run.cost["metok"]
    assert cost["flops_prefill"] < run.cost[UNPRUNED]["flops_prefill"]
    assert cost["selection_ms"]["median"] > 0
    events = pd.read_parquet(run.path / "events.parquet")
    assert set(events["arm"]) == {"metok"}
    for _, mine in events.groupby("sample"):
        assert [*mine["first"], 16] == [0, *mine["end"]]
        assert mine["key"].sum() == min(3, len(mine))
        assert all(len(tokens) == 3 for tokens in mine["tokens"])
    (view,) = next(iter(json.loads((run.path / "pictures" / "index.json").read_text()).values()))["views"]
    assert view["grid"] == [20, 16]  # four rows of four frames of 4 x 4 tokens, the events below each row


@pytest.mark.slow
def test_a_sample_is_explained(run):
    """Its answer again, with the same tokens kept at every stage."""
    sample = run.samples["sample"].iloc[0]
    life = explain(run.path, sample)
    assert all(stage.kept == stage.recorded for stage in life.stages)
    assert life.pruned.text == run.rows("metok").loc[sample, "prediction"]
