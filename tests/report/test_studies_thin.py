"""Studies of runs that hold too little: what is missing is left out or named."""

import pandas as pd
import pytest
from sample_run import of, write_run
from studying import SAMPLES, answer, config

from btp.report.studies.ablation import dots
from btp.report.studies.coverage import coverage
from btp.report.studies.curves import curves


def without_reading(folder):
    """As a small limit leaves it: no sample of what the task calls reading."""
    samples, trace = (pd.read_parquet(folder / f"{name}.parquet") for name in ("samples", "trace"))
    kept = samples[~samples["ability"].isin(["digit", "number"])]
    kept.to_parquet(folder / "samples.parquet", index=False)
    trace[trace["sample"].isin(set(kept["sample"]))].to_parquet(folder / "trace.parquet", index=False)
    return folder


def test_a_score_that_no_sample_counts_for_is_left_out(tmp_path):
    without_reading(write_run(tmp_path / "a", SAMPLES, overlays=0, config=config()))
    found = answer(curves, tmp_path, x="tokens_share", y=["macro", "reading"])
    assert [column.key for column in found.columns if column.key in ("macro", "reading")] == ["macro"]
    with pytest.raises(ValueError, match=r"no sample that counts for reading\. Raise limit"):
        answer(curves, tmp_path, x="tokens_share", y=["reading"])
    assert "reading" not in {
        column.key for column in answer(dots, tmp_path, by=["pruner.name"], metrics=["macro", "reading"]).columns
    }


def test_runs_without_a_method_have_nothing_to_compare(tmp_path):
    write_run(
        tmp_path / "a", SAMPLES, arms=of("none")[:1], name="none", overlays=0, config=config(pruner={"name": "none"})
    )
    with pytest.raises(ValueError, match="none of the runs is of a method"):
        answer(curves, tmp_path, x="tokens_share", y=["macro"])


def test_coverage_of_samples_that_need_no_region(tmp_path):
    folder = write_run(tmp_path / "a", SAMPLES, overlays=0, config=config())
    first = pd.read_parquet(folder / "samples.parquet")["sample"].iloc[0]
    region = {"sample": first, "label": "red circle", "target": False, "x0": 0.0, "y0": 0.0, "x1": 0.5, "y1": 0.5}
    pd.DataFrame([region]).to_parquet(folder / "regions.parquet", index=False)
    with pytest.raises(ValueError, match="no sample of the runs needs a region"):
        answer(coverage, tmp_path)
