"""Reading a run folder, and what is said about one that cannot be read."""

import json

import pandas as pd
import pytest
from sample_run import ABILITIES, ARMS, write_run

from btp.results.natural_order import natural_order
from btp.results.reader import read_run


def test_a_run_is_read(run_folder):
    run = read_run(run_folder)
    assert [a.arm for a in run.arms] == ["unpruned", "btp", "random"]
    assert run.abilities == list(ABILITIES)
    assert run.reading == ["digit"]
    assert (run.baseline.arm, run.random.arm) == ("unpruned", "random")
    assert [a.arm for a in run.methods] == ["btp"]
    assert run.arms[1].schedule[0] == {"site": "llm.layer.3", "keep": 0.5}
    assert len(run.rows("btp")) == 40
    picture = next(iter(run.pictures.values()))
    assert [view.grid for view in picture.views] == [(12, 12)]
    assert picture.total == 144
    assert len(picture.boxes) == len(picture.labels) == 4


def test_what_is_not_required_may_be_missing(tmp_path):
    optional = ("trace.parquet", "layers.json", "cost.json", "calibration.yaml", "pictures/index.json")
    run = read_run(write_run(tmp_path / "run", drop=optional))
    assert run.trace.empty
    assert run.calibration is None
    assert not run.layers
    assert not run.pictures


def test_a_running_run_has_the_arms_it_answered(tmp_path):
    folder = write_run(tmp_path / "run")
    samples = pd.read_parquet(folder / "samples.parquet")
    samples[samples["arm"] != "random"].to_parquet(folder / "samples.parquet")
    assert [a.arm for a in read_run(folder).arms] == ["unpruned", "btp"]


def test_no_such_folder(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere is no run folder: there is no such folder\. Name a folder"):
        read_run(tmp_path / "nowhere")


def test_a_folder_of_runs_is_told_from_a_run(tmp_path):
    write_run(tmp_path / "one", samples=4)
    with pytest.raises(ValueError, match=r"no run\.json, but 1 of its folders do\. Name those: .*, or .*one\."):
        read_run(tmp_path)


def test_a_folder_with_other_things(tmp_path):
    with pytest.raises(ValueError, match=r"it holds no run\.json\. Name a folder that run\.py wrote"):
        read_run(tmp_path)


@pytest.mark.parametrize("file", ["config.yaml", "samples.parquet"])
def test_a_required_file_is_missing(tmp_path, file):
    folder = write_run(tmp_path / "run", drop=[file, "cost.json"])
    with pytest.raises(ValueError, match=rf"{file} is missing.* Run its command again"):
        read_run(folder)


@pytest.mark.parametrize("file", ["run.json", "config.yaml", "samples.parquet", "trace.parquet", "cost.json"])
def test_a_file_is_cut_short(tmp_path, file):
    folder = write_run(tmp_path / "run")
    (folder / file).write_text("{a: [")
    with pytest.raises(ValueError, match=rf"{file} cannot be read: .*\. Delete it\. Run its command again"):
        read_run(folder)


def test_a_run_of_costs_only(tmp_path):
    folder = write_run(tmp_path / "run", drop=["samples.parquet"])
    with pytest.raises(ValueError, match=r"holds costs, but no answers to report on.* Read its cost\.json"):
        read_run(folder)


def test_a_trace_of_a_run_without_stages_has_no_columns(tmp_path):
    folder = write_run(tmp_path / "run", arms=ARMS[:1])
    pd.DataFrame([]).to_parquet(folder / "trace.parquet")
    assert read_run(folder).trace.empty


def test_a_file_holds_something_else(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "cost.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"cost\.json is broken: it holds \[1, 2\], not keys with values"):
        read_run(folder)


def test_a_picture_is_gone(tmp_path):
    folder = write_run(tmp_path / "run", drop=["pictures/test-0-000000.png"])
    with pytest.raises(ValueError, match=r"test-0-000000\.png is missing, but .*index\.json names it"):
        read_run(folder)


def test_arms_must_be_listed(tmp_path):
    folder = write_run(tmp_path / "run")
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(run | {"arms": run["arms"][:2]}))
    with pytest.raises(ValueError, match=r"holds arms that run\.json does not list: random"):
        read_run(folder)
    (folder / "run.json").write_text(json.dumps(run | {"arms": []}))
    with pytest.raises(ValueError, match=r"run\.json is broken: arms is \[\], not a list of 1 or more"):
        read_run(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.drop(columns=["kl", "score"]), r"lacks the columns score, kl"),
        (lambda s: s[:0], r"holds no sample.* limit is 1 or more"),
        (lambda s: pd.concat([s, s[:1]]), r"sample test-0-000000 of arm unpruned more than once"),
        (lambda s: s.assign(score=2.0), r"score 2\.0 .*not in \[0, 1\]\. Correct the task's score\(\)"),
    ],
)
def test_samples_that_cannot_be_right(tmp_path, change, message):
    folder = write_run(tmp_path / "run", arms=ARMS[:2], samples=8)
    change(pd.read_parquet(folder / "samples.parquet")).to_parquet(folder / "samples.parquet")
    with pytest.raises(ValueError, match=message):
        read_run(folder)


@pytest.mark.parametrize(
    ("shown", "ordered"),
    [
        (["color", "digit", "color", "area"], ["color", "digit", "area"]),
        (
            ["750 words, 50%", "1500 words, 0%", "750 words, 12.5%"],
            ["750 words, 12.5%", "750 words, 50%", "1500 words, 0%"],
        ),
        (["2 words, 5%", "10 lines, 1%", "1 words, 5%"], ["2 words, 5%", "10 lines, 1%", "1 words, 5%"]),
        ([], []),
    ],
)
def test_lengths_and_depths_stand_in_their_order(shown, ordered):
    assert natural_order(shown) == ordered
