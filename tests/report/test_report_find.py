"""Which runs a comparison finds, and that nothing is dropped in silence."""

import json
import shutil

import pytest
from sample_run import write_run

from btp.results.find import find_runs, nothing_found, run_folders

SMALL = {"samples": 4, "overlays": 0}


def kinds(left):
    return [(x.kind, x.what.rsplit("/", 1)[-1]) for x in left]


def test_runs_are_found_at_any_depth(tmp_path):
    """In a folder of runs, deeper down, behind a link; not in hidden folders, nor inside a run."""
    one = write_run(tmp_path / "all/one", **SMALL)
    two = write_run(tmp_path / "all/deep/er/two", **SMALL)
    far = write_run(tmp_path / "far", **SMALL)
    write_run(tmp_path / "all/.store/hidden", **SMALL)
    write_run(one / "pictures/inside", **SMALL)
    (tmp_path / "all/linked").symlink_to(far)
    (tmp_path / "all/round").symlink_to(tmp_path / "all")
    assert run_folders(tmp_path / "all") == [two, tmp_path / "all/linked", one]
    runs, left = find_runs([tmp_path / "all"])
    assert (len(runs), left) == (3, [])


def test_a_folder_named_twice_is_read_once(tmp_path):
    one = write_run(tmp_path / "one", **SMALL)
    runs, left = find_runs([tmp_path, one, tmp_path / "one"])
    assert (len(runs), left) == (1, [])


def test_one_identity_counts_once_the_latest(tmp_path):
    early = write_run(tmp_path / "early", **SMALL, run={"identity": "abc", "started": "2026-01-01T10:00:00+00:00"})
    late = write_run(tmp_path / "late", **SMALL, run={"identity": "abc", "started": "2026-01-02T10:00:00+00:00"})
    runs, left = find_runs([tmp_path])
    assert [run.path for run in runs] == [late]
    assert [(x.kind, x.what, x.why) for x in left] == [("twice", str(early), f"the same run as {late}, which is in")]


def test_runs_without_an_identity_are_told_by_their_folder(tmp_path):
    for name in ("one", "two"):
        write_run(tmp_path / name, **SMALL, run={"identity": None})
    assert len(find_runs([tmp_path])[0]) == 2


def test_what_did_not_finish_is_named_with_its_reason(tmp_path):
    write_run(tmp_path / "a", **SMALL, run={"state": "failed", "error": "out of memory"})
    write_run(tmp_path / "b", **SMALL, run={"state": "running", "command": "python run.py pruner=b"})
    write_run(tmp_path / "c", **SMALL, drop=["config.yaml"])
    (tmp_path / "d").mkdir()
    (tmp_path / "d/run.json").write_text("{")
    (tmp_path / "e").mkdir()
    (tmp_path / "e/run.json").write_text("[]")
    shutil.copytree(write_run(tmp_path / "f", **SMALL), tmp_path / "g")
    runs, left = find_runs([tmp_path])
    assert len(runs) == 1
    assert kinds(left) == [
        *(("failed", "a"), ("unfinished", "b"), ("failed", "c")),
        *(("failed", "d"), ("failed", "e"), ("twice", "g")),
    ]
    reasons = [x.why for x in left]
    assert reasons[0] == "failed: out of memory"
    assert "its command again goes on" in reasons[1]
    assert left[1].command == "python run.py pruner=b"
    assert "config.yaml is missing" in reasons[2]
    assert "run.json cannot be read" in reasons[3]
    assert "it holds [], not keys with values" in reasons[4]


def test_folders_without_runs_are_named(tmp_path):
    write_run(tmp_path / "one", **SMALL)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("")
    (tmp_path / "comparison").mkdir()
    (tmp_path / "comparison/comparison.html").write_text("")
    assert find_runs([tmp_path / "one", tmp_path / "comparison"])[1] == []
    runs, left = find_runs([tmp_path / "one", tmp_path / "empty", tmp_path / "file.txt"])
    assert len(runs) == 1
    assert kinds(left) == [("nothing", "empty"), ("nothing", "file.txt")]
    assert [x.why for x in left] == ["holds no run.json, at no depth", "is a file, not a folder of runs"]
    with pytest.raises(ValueError, match=r"nowhere does not exist\. Name folders that run\.py wrote, or one above"):
        find_runs([tmp_path / "nowhere"])


def test_the_message_says_what_was_looked_at(tmp_path):
    write_run(tmp_path / "a", **SMALL, run={"state": "failed", "error": "out of memory"})
    text = nothing_found([tmp_path], find_runs([tmp_path])[1])
    assert text.startswith(f"No finished run to compare. Looked at {tmp_path}.\n")
    assert f"{tmp_path / 'a'}: failed: out of memory" in text


def test_a_run_of_costs_only_is_read(tmp_path):
    write_run(tmp_path / "costs", **SMALL, drop=["samples.parquet"])
    (run,), left = find_runs([tmp_path])
    assert left == []
    assert run.samples.empty
    assert run.cost["btp"]["kv_mib"] > 0


def test_the_budget_of_an_arm_is_read(tmp_path):
    folder = write_run(tmp_path / "run", **SMALL)
    run = json.loads((folder / "run.json").read_text())
    run["arms"][1]["budget"] = {"asked": 32, "reached": 31.6}
    run["arms"][2]["budget"] = None
    (folder / "run.json").write_text(json.dumps(run))
    arms = find_runs([folder])[0][0].arms
    assert [arm.budget for arm in arms] == [{}, {"asked": 32, "reached": 31.6}, {}]
