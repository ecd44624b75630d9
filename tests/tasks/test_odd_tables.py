"""Tables that are odd but right: separators of Unicode inside of texts, endings in capitals, ids of any script."""

import csv
import json

import pytest
from PIL import Image

from btp.tasks.benchmarks.mme import MME
from btp.tasks.files.local import file_name, lines_of, read_json
from btp.tasks.files.vqa_folder import VQAFolder
from btp.tasks.vqa import VQA

SEPARATORS = ("\u2028", "\u2029", "\x85", "\x1c", "\v", "\f")  # where str.splitlines would divide a line
ROW = {"image": "A.PNG", "question": "what?", "answer": "dog"}


@pytest.fixture
def folder(tmp_path):
    """One picture whose name is in capitals."""
    Image.new("RGB", (8, 6)).save(tmp_path / "A.PNG")
    return tmp_path


def samples(path):
    """All of a table."""
    task = VQA("mine", VQAFolder(str(path)), "exact", max_new_tokens=8)
    return [task[i] for i in range(len(task))]


@pytest.mark.parametrize("separator", SEPARATORS[:3])
def test_separators_in_a_text_divide_no_line(folder, separator):
    rows = [ROW | {"question": f"one{separator}{i}?"} for i in range(2)]
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "q.jsonl").write_text(text, encoding="utf-8")
    assert [sample.question for sample in samples(folder)] == [row["question"] for row in rows]


def test_a_broken_line_is_counted_by_newlines(folder):
    (folder / "q.jsonl").write_text('{"a": "\u2028"}\n{"a": "\x85"}\n{"a"\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"q\.jsonl, line 3 is no JSON"):
        read_json(folder / "q.jsonl", "task.path")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_where_files_end_them(end):
    assert lines_of(end.join(["a", *SEPARATORS, ""])) == ["a", *SEPARATORS, ""]


def test_separators_in_mme_and_a_text_in_capitals(folder):
    (folder / "count").mkdir()
    Image.new("RGB", (8, 6)).save(folder / "count" / "1.JPG")
    (folder / "count" / "1.TXT").write_text("one\u2028two?\tYes\nthree?\tNo\n", encoding="utf-8")
    found = MME(str(folder)).read()
    assert [(s.question, s.reference) for s in found] == [("one\u2028two?", "yes"), ("three?", "no")]
    assert found[0].images[0].size == (8, 6)


@pytest.mark.parametrize("ending", [".JSON", ".JSONL", ".CSV", ".TSV", ".Jsonl"])
def test_endings_may_be_in_capitals(folder, ending):
    path = folder / f"Q{ending}"
    if ending in (".CSV", ".TSV"):
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter="," if ending == ".CSV" else "\t").writerows([ROW.keys(), ROW.values()])
    else:
        path.write_text(json.dumps(ROW if ending.lower() == ".jsonl" else [ROW]), encoding="utf-8")
    for place in (path, folder):
        (one,) = samples(place)
        assert one.reference == "dog"
        assert one.images[0].size == (8, 6)


@pytest.mark.parametrize("letter", ["x", "ä", "字", "😀", "𝔸"])
def test_a_long_id_names_a_file_in_any_script(tmp_path, letter):
    """File systems count bytes; ids that differ at their end only stay apart."""
    ids = [letter * 300 + str(i) for i in range(3)]
    names = [file_name(own) for own in ids]
    assert len(set(names)) == 3
    for name in names:
        assert len(name.encode()) <= 120
        (tmp_path / f"{name}.npy.part").touch()


def test_ids_that_differ_in_signs_alone_stay_apart(folder):
    """What a file system minds becomes a dash; where two ids would then be one, a hash tells them apart."""
    rows = [ROW | {"id": own} for own in ("a/b", "a b", "a-b", "c/d", "?", "!")]
    (folder / "q.json").write_text(json.dumps(rows), encoding="utf-8")
    names = [sample.id for sample in samples(folder)]
    assert len(set(names)) == 6
    assert names[2:4] == ["a-b", "c-d"]
    assert all(name.startswith("a-b-") for name in names[:2])


def test_an_id_that_stands_twice_is_refused(folder):
    (folder / "q.json").write_text(json.dumps([ROW | {"id": "a/b"}] * 2), encoding="utf-8")
    with pytest.raises(ValueError, match=r"1 id\(s\) stand for several samples, for example a-b"):
        samples(folder)
