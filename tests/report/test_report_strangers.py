"""A run folder of somebody else: its report is written into it and nowhere else, from pictures and nothing else."""

import ast
import json
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from sample_run import write_run

import btp
from btp.report.pages.run_page import write_report
from btp.report.studies.study import Study
from btp.results.reader import read_run
from btp.results.writer import RunFolder

pytestmark = pytest.mark.long

EPS = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "deep" / "run", samples=8)


def rename_picture(run, name, path):
    """Call the first sample of the index otherwise, in every file, and put its picture there."""
    file = run / "pictures" / "index.json"
    index = json.loads(file.read_text())
    first = next(iter(index))
    (run / "pictures" / f"{first}.png").rename(path)
    file.write_text(json.dumps({name: index[first], **{k: v for k, v in index.items() if k != first}}))
    for table in ("samples", "trace"):
        frame = pd.read_parquet(run / f"{table}.parquet")
        frame.assign(sample=frame["sample"].replace(first, name)).to_parquet(run / f"{table}.parquet")


def test_an_id_that_leads_elsewhere_is_a_file_of_the_folder(run, tmp_path):
    """Neither is the picture read from there nor an overlay written to it."""
    outside = tmp_path / "deep" / "outside.png"
    Image.new("RGB", (9, 9)).save(outside)
    before = outside.read_bytes()
    rename_picture(run, "../../outside", run / "pictures" / "outside.png")
    assert read_run(run).pictures["../../outside"].path == run / "pictures" / "outside.png"
    write_report(run)
    assert outside.read_bytes() == before
    assert {path.resolve().parent for path in run.rglob("*.png")} <= {
        run / "figures",
        run / "overlays",
        run / "pictures",
    }
    assert (run / "overlays" / "outside.png").is_file()


def test_a_run_folder_that_is_a_link_is_not_written(run, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(run)
    before = sorted(run.rglob("*"))
    for write in (lambda: write_report(link), RunFolder(link).check):
        with pytest.raises(ValueError, match=r"link is a symbolic link to .*run, and a run is not written through one"):
            write()
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize("name", ["report.html", "table.csv", "overlays", "figures", "figures/tokens_per_layer.png"])
def test_a_link_in_place_of_what_is_written(run, tmp_path, name):
    """Nor does a file or folder inside lead out of it; links above the run folder are the user's own."""
    away = tmp_path / "away"
    (away / "runs").mkdir(parents=True)
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).symlink_to(away / "secret")
    with pytest.raises(ValueError, match="is a symbolic link to"):
        write_report(run)
    assert not (away / "secret").exists()
    (run / name).unlink()
    (tmp_path / "outputs").symlink_to(run.parent)
    assert write_report(tmp_path / "outputs" / "run").is_file()


def test_a_picture_that_is_a_link_is_not_read(run, tmp_path):
    file = next((run / "pictures").glob("*.png"))
    file.rename(tmp_path / "other.png")
    file.symlink_to(tmp_path / "other.png")
    with pytest.raises(ValueError, match=r"\.png is missing, but .*index\.json names it"):
        read_run(run)


def test_a_picture_of_another_format_is_left_out(run, monkeypatch):
    """EPS under the name of a PNG would start Ghostscript."""
    monkeypatch.setattr("subprocess.check_call", lambda *a, **k: pytest.fail("a program was started"))
    file = next((run / "pictures").glob("*.png"))
    file.write_text(EPS)
    with pytest.warns(UserWarning, match=file.stem):
        page = write_report(run)
    assert f"the overlay of sample {file.stem} is missing" in page.read_text()


def test_one_place_opens_pictures():
    """Image.open tries every format that Pillow knows; the function with the list is the only one that calls it."""
    calls = [
        file.name
        for file in Path(btp.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Image.open"
    ]
    assert calls == ["decode_image.py"]


@pytest.mark.parametrize("name", ["../there", "a/b", "/there"])
def test_a_study_is_called_by_a_name(name):
    """A sweep's folder says how its study is called, and three files are called so."""
    with pytest.raises(ValueError, match=r"study\.name is .*, but a name has letters"):
        Study.of({"name": name, "question": "?", "figure": "dots"})
