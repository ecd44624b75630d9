"""`python -m btp.report`."""

import os

from sample_run import ARMS, write_run

from btp.report.__main__ import main


def test_one_folder_gets_its_report_again(tmp_path, capsys):
    folder = write_run(tmp_path / "run", samples=8, overlays=1, drop=["layers.json", "calibration.yaml"])
    assert main([str(folder)]) == 0
    assert (folder / "report.html").is_file()
    printed = capsys.readouterr().out
    assert "btp on pocket, pocketvqa, 8 samples" in printed
    assert printed.strip().endswith("report.html")


def test_several_folders_get_one_table(tmp_path, capsys):
    one = write_run(tmp_path / "one", samples=8)
    two = write_run(tmp_path / "two", samples=8, name="dart", arms=(ARMS[0], {**ARMS[1], "title": "dart"}))
    out = tmp_path / "tables"
    assert main([str(one), str(two), "--out", str(out)]) == 0
    assert sorted(os.listdir(out)) == ["runs.csv", "runs.md", "runs.png", "runs.tex"]
    assert "dart" in capsys.readouterr().out
    assert "| dart |" in (out / "runs.md").read_text()


def test_a_folder_that_is_no_run_is_named(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path} is no run folder: it holds no run.json. Name a folder that run.py wrote.\n"
    )
