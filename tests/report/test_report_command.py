"""`python -m btp.report`."""

import os
import re
import resource

import pytest
from sample_run import of, write_run

from btp.report.__main__ import main


def test_one_folder_gets_its_report_again(tmp_path, capsys):
    folder = write_run(tmp_path / "run", samples=8, overlays=1, drop=["layers.json", "calibration.yaml"])
    assert main([str(folder)]) == 0
    assert (folder / "report.html").is_file()
    printed = capsys.readouterr().out
    assert "btp on pocket, pocketvqa, 8 samples" in printed
    assert printed.strip().endswith("report.html")


def test_a_disk_without_room_is_said_and_the_old_report_stays(tmp_path, capsys):
    folder = write_run(tmp_path / "run", samples=8, overlays=1)
    (folder / "report.html").write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))  # enough for the tables
    try:
        assert main([str(folder)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert re.search(r"^error: \S+\.png cannot be written: .* bytes free\. Free some", capsys.readouterr().err)
    assert (folder / "report.html").read_text() == "old"


@pytest.mark.long
def test_several_folders_are_compared(tmp_path, capsys):
    one = write_run(tmp_path / "one", samples=8, overlays=1)
    two = write_run(tmp_path / "two", samples=8, overlays=1, name="dart", arms=of("dart"))
    out = tmp_path / "tables"
    assert main([str(one), str(two), "--out", str(out)]) == 0
    names = [f"comparison.{end}" for end in ("csv", "html", "md", "tex")]
    assert sorted(os.listdir(out)) == [*names, "figures"]
    printed = capsys.readouterr().out
    assert "dart @ 63.0" in printed
    assert printed.split()[-4:] == [str(out / name) for name in (names[1], names[0], names[2], names[3])]
    assert "| dart |" in (out / "comparison.md").read_text()


@pytest.mark.long
def test_a_folder_above_runs_is_compared_into_itself(tmp_path, capsys, monkeypatch):
    write_run(tmp_path / "sweep/0", samples=8, overlays=0)
    write_run(tmp_path / "sweep/1", samples=8, overlays=0, name="dart", arms=of("dart"))
    write_run(tmp_path / "sweep/2", samples=8, overlays=0, run={"state": "failed", "error": "out of memory"})
    assert main([str(tmp_path / "sweep")]) == 0
    assert (tmp_path / "sweep/comparison/comparison.html").is_file()
    printed = capsys.readouterr().out
    assert "Left out" in printed
    assert "failed: out of memory" in " ".join(printed.split())
    monkeypatch.chdir(tmp_path)
    assert main(["sweep/0", "sweep/1"]) == 0
    assert (tmp_path / "comparison/comparison.html").is_file()


def test_no_run_anywhere_is_an_error(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: No finished run to compare. Looked at {tmp_path}.\n"
        f"  {tmp_path}: holds no run.json, at no depth\n"
        "Name folders that run.py wrote, or one above them.\n"
    )
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err


def test_out_that_is_a_file_is_named(tmp_path, capsys):
    (tmp_path / "tables").write_text("mine")
    assert main([str(tmp_path), "--out", str(tmp_path / "tables")]) == 2
    assert "tables, which is no folder. Name one, or leave it out." in capsys.readouterr().err


def test_out_has_no_effect_on_one_run(tmp_path, capsys):
    folder = write_run(tmp_path / "run", samples=4)
    assert main([str(folder), "--out", str(tmp_path)]) == 2
    assert "the report of one run lies in its folder" in capsys.readouterr().err
