"""What is too large is refused by name before any work goes into it."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from btp.tasks import size_limits
from btp.tasks.files import tables
from btp.tasks.files.images import PictureFile, Pictures
from btp.tasks.files.tables import read_rows
from btp.tasks.sample import Sample
from btp.tasks.size_limits import MOST_CHARACTERS, check_questions, sizes_within


def sample(question="What?", images=()):
    return Sample("s", images, question, "yes", "all")


def test_a_question_that_no_context_holds_is_refused():
    check_questions([sample("a" * MOST_CHARACTERS)])
    with pytest.raises(ValueError, match=r"sample s: its question has 10,000,000 characters, more than the 1,000,000"):
        check_questions([sample(), sample("a" * 10**7)])


def test_pictures_of_too_many_pixels_together_are_refused_undecoded(tmp_path):
    """Eight large ones in black and white: small files, whose heads alone are read."""
    Image.new("1", (13_000, 13_000)).save(tmp_path / "a.png")
    one = PictureFile(tmp_path / "a.png")
    assert sizes_within([sample(images=Pictures("s", [one]))]) == [[(13_000, 13_000)]]
    with pytest.raises(ValueError, match=r"sample s: its 8 pictures have 1,352 million pixels together, more than"):
        sizes_within([sample(images=Pictures("s", [one] * 8))])


def test_pictures_in_memory_are_counted_too(monkeypatch):
    monkeypatch.setattr(size_limits, "MOST_PIXELS", 100)
    assert sizes_within([sample(images=[Image.new("RGB", (10, 10))]), sample()]) == [[(10, 10)], []]
    with pytest.raises(ValueError, match="its 2 pictures"):
        sizes_within([sample(images=[Image.new("RGB", (10, 10))] * 2)])


ROWS = [{"question": "a", "answer": "b"}] * 5


def write(path):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(ROWS))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        path.write_text("question,answer\n" + "a,b\n" * len(ROWS))
    return path


@pytest.mark.parametrize("ending", ["parquet", "json", "jsonl", "csv"])
def test_a_table_of_too_many_rows_is_refused(tmp_path, monkeypatch, ending):
    path = write(tmp_path / f"a.{ending}")
    monkeypatch.setattr(tables, "MOST_ROWS", 5)
    assert len(read_rows(path, "task.path")) == 5
    monkeypatch.setattr(tables, "MOST_ROWS", 4)
    with pytest.raises(ValueError, match=r"holds more than 4 rows.*, but a table is read whole.* set task.path to it"):
        read_rows(path, "task.path")


@pytest.mark.parametrize("ending", ["parquet", "json", "csv"])
def test_a_table_of_too_many_bytes_is_refused_before_it_is_read(tmp_path, monkeypatch, ending):
    path = write(tmp_path / f"a.{ending}")
    monkeypatch.setattr(tables, "MOST_BYTES", 8)
    with pytest.raises(ValueError, match=r"holds 0\.0 GiB of text, but a table is read whole"):
        read_rows(path, "task.path")


def test_pictures_of_a_table_do_not_count_as_text(tmp_path, monkeypatch):
    pq.write_table(
        pa.Table.from_pylist([{"question": "a", "image": {"bytes": b"x" * 9999, "path": "a"}}]), tmp_path / "a.parquet"
    )
    monkeypatch.setattr(tables, "MOST_BYTES", 1000)
    assert len(read_rows(tmp_path / "a.parquet", "task.path")) == 1
