"""What stands in a cell of a table of questions: nothing, something else than it should be, a picture that changed."""

import csv
import json
import os
import re
import shutil
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from btp.tasks.benchmarks.mme import MME
from btp.tasks.files import images as pictures
from btp.tasks.files.vqa_folder import VQAFolder
from btp.tasks.vqa import VQA

ROW = {"id": "a", "image": "0.png", "question": "q?", "answer": "yes"}
LETTERS = ["cat", "dog"]


@pytest.fixture
def folder(tmp_path):
    """Two pictures."""
    for i in range(2):
        Image.new("RGB", (8 + i, 6), (40 * i, 9, 0)).save(tmp_path / f"{i}.png")
    return tmp_path


def task(path, rows=None, metric="exact", **columns):
    """The task of a table, which is written first where rows are given; it warns of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return loud(path, rows, metric, **columns)


def loud(path, rows=None, metric="exact", **columns):
    """The task of a table that may warn."""
    if rows is not None and path.suffix == ".csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
            table.writeheader()
            table.writerows(rows)
    elif rows is not None:
        path.write_text(json.dumps(rows))
    return VQA("mine", VQAFolder(str(path), columns=columns), metric, max_new_tokens=8)


def refused(message, path, *rows):
    with pytest.raises(ValueError, match=re.escape(message)):
        loud(path, list(rows) or None)


NOTHING = [None, "", " ", [], [None], [""], {}, float("nan")]


@pytest.mark.parametrize("nothing", NOTHING, ids=repr)
def test_null_and_empty_are_absent(folder, nothing):
    """Whatever stands beside them counts, and what only they fill has its default."""
    row = ROW | {"id": nothing, "images": nothing, "answers": nothing, "ability": nothing, "category": "things"}
    row |= {"choices": nothing, "boxes": nothing, "labels": nothing, "group": nothing}
    (one,) = task(folder / "q.json", [row])
    assert (one.id, one.reference, one.references, one.ability) == ("000000", "yes", (), "things")
    assert (one.choices, one.boxes, one.labels, one.group) == ((), (), (), "")
    assert one.images[0].size == (8, 6)
    (one,) = task(folder / "q.json", [row | {"image": [nothing, "1.png"], "category": nothing}])
    assert (one.ability, [p.size for p in one.images]) == ("all", [(9, 6)])
    refused("has no `answer`", folder / "q.json", row | {"answer": nothing})


def test_what_is_false_or_nought_is_not_absent(folder):
    found = task(folder / "q.json", [ROW | {"id": 0, "answer": False}, ROW | {"id": 1, "answer": 0, "ability": 0}])
    assert [(s.id, s.reference, s.ability) for s in found] == [("0", "no", "all"), ("1", "0", "0")]


def test_of_two_columns_the_first_that_holds_something_counts(folder):
    row = ROW | {"images": ["1.png"], "answers": ["a", "b"], "category": "late", "ability": "early"}
    (one,) = task(folder / "q.json", [row])
    assert (one.images[0].size, one.references, one.ability) == ((9, 6), ("a", "b"), "early")


@pytest.mark.parametrize("kind", ["bytes", "struct", "list"])
def test_parquet_cells_without_bytes(folder, kind):
    """A null is no picture; a path without bytes is a picture beside the table."""
    data = (folder / "0.png").read_bytes()
    if kind == "bytes":
        cells, sizes = [data, None], [[(8, 6)], []]
    else:
        cells = [{"bytes": data, "path": None}, None, {"bytes": None, "path": "1.png"}, {"bytes": None, "path": None}]
        sizes = [[(8, 6)], [], [(9, 6)], []]
    if kind == "list":
        cells, sizes = [cells, None, [], [cells[1]]], [[(8, 6), (9, 6)], [], [], []]
    rows = [{"question": "q?", "answer": "yes", "image": cell} for cell in cells]
    pq.write_table(pa.Table.from_pylist(rows), folder / "q.parquet")
    with pytest.warns(UserWarning, match="samples show no picture"):
        found = loud(folder / "q.parquet")
    assert [[p.size for p in s.images] for s in found] == sizes


def test_samples_without_a_picture_among_others_are_counted(folder):
    rows = [ROW, ROW | {"id": "b", "image": None}, ROW | {"id": "c", "image": ""}]
    with pytest.warns(UserWarning, match=r"q.json: 2 of 3 samples show no picture, the first of them b\."):
        loud(folder / "q.json", rows)
    task(folder / "q.json", [row | {"image": None} for row in rows])  # a table of text is one on purpose


@pytest.mark.filterwarnings("ignore:.*samples show no picture")
@pytest.mark.parametrize(
    ("name", "meant"), [("picture", "image"), ("img", "image"), ("Image", "image"), ("imagse", "image"),
                        ("options", "choices"), ("catgory", "category")]
)  # fmt: skip
def test_columns_that_look_like_others_are_named(folder, name, meant):
    row = {"question": "q?", "answer": "yes", name: "0.png"}
    said = f"q.json has a column `{name}`, which is not read. If it is the samples' `{meant}`, set "
    with pytest.warns(UserWarning, match=re.escape(f"{said}task.dataset.reader.columns={{{meant}: {name}}}.")):
        loud(folder / "q.json", [row])
    task(folder / "q.json", [row], **{meant: name}) if meant != "choices" else None
    either = {"image": "1.png", "choices": LETTERS, "ability": "b"}
    task(folder / "q.json", [row | either, {**row, **either, name: None}])  # the schema's own is there
    with pytest.warns(UserWarning, match=f"a column `{name}`"):
        loud(folder / "q.json", [row, row | either])  # not in every row


def test_choices_and_labels_are_lists(folder):
    row = ROW | {"answer": "dog", "choices": LETTERS, "boxes": [[0, 0, 1, 1]], "labels": ["thing"]}
    (one,) = task(folder / "q.json", [row])
    (keyed,) = task(folder / "q.json", [row | {"choices": {"A": "cat", "B": "dog"}, "labels": {"x": "thing"}}])
    (cell,) = task(folder / "q.csv", [{n: json.dumps(v) if isinstance(v, list) else v for n, v in row.items()}])
    (padded,) = task(folder / "q.json", [row | {"choices": [*LETTERS, None, None]}])
    for s in (one, keyed, cell, padded):
        assert (s.choices, s.reference, s.labels, s.boxes) == (("cat", "dog"), "B", ("thing",), ((0, 0, 1, 1),))
        assert s.question == "q?\nA. cat\nB. dog"


def test_an_answer_may_be_the_key_of_a_choice(folder):
    for answer, letter in (("1", "A"), ("2", "B"), ("3", "C"), ("dog", "A")):
        row = ROW | {"answer": answer, "choices": {"1": "dog", "2": "cat", "3": "cow"}}
        assert task(folder / "q.json", [row], "multiple_choice")[0].reference == letter
    row = ROW | {"answer": "1", "choices": ["1", "0"]}
    assert task(folder / "q.json", [row], "multiple_choice")[0].reference == "A"  # a list has texts, and no keys


@pytest.mark.parametrize("name", ["choices", "labels"])
@pytest.mark.parametrize("value", ["cat;dog;cow", 4, True, "[cat, dog]", '{"A": "cat"}'])
def test_what_is_no_list_is_refused(folder, name, value):
    said = f'sample a: `{name}` is {value!r}, which is no list. Write it as one, such as ["cat", "dog"]'
    refused(f"q.json, {said}", folder / "q.json", ROW | {name: value})
    if isinstance(value, str):
        refused(f"q.csv, {said}", folder / "q.csv", ROW | {name: value})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"choices": ["cat", ["dog"]]}, "`choices` holds ['dog'], which is neither text nor a number"),
        ({"choices": {"A": "cat", "B": None, "C": "dog"}}, "`choices` holds None, which is neither text nor"),
        ({"answers": [{"answer": "yes", "answer_id": 1}]}, "`answer` holds {'answer': 'yes', 'answer_id': 1}, which"),
        ({"boxes": 5}, "`boxes` holds 5, which is not [x0, y0, x1, y1]"),
        ({"boxes": "0,0,1,1"}, "`boxes` holds '0,0,1,1', which is not"),
        ({"boxes": [0, 0, 1, 1]}, "`boxes` holds 0, which is not"),
        ({"boxes": [[0, 0, "a", 1]]}, "`boxes` holds [0, 0, 'a', 1], which is not"),
        ({"boxes": [[0, 0, 1]]}, "`boxes` holds [0, 0, 1], which is not"),
        ({"question": "is <image> like <image>?"}, "holds <image> 2 times, but it shows 1 picture(s). Correct `image`"),
        ({"question": "<image>\nq?", "image": None}, "holds <image> 1 times, but it shows 0 picture(s)"),
        ({"question": "<image>\n"}, "sample a has no `question`"),
        ({"choices": ["<image>", "cat"]}, "sample a: a choice holds <image>, but choices are text"),
    ],
)
def test_a_cell_that_is_wrong_says_which(folder, more, said):
    refused(said, folder / "q.json", ROW | more)
    with pytest.raises(ValueError, match=r"q.json, sample a\b"):
        loud(folder / "q.json")


@pytest.mark.parametrize(
    ("question", "asked"),
    [
        ("<image>\nWhat is it?", "What is it?"),
        ("What is it?\n<image>", "What is it?"),
        ("Hint.\n<image>\nWhat is it?", "Hint.\nWhat is it?"),
        ("Is <image> a dog?", "Is a dog?"),
        ("Is <image 1> a dog? ", "Is <image 1> a dog? "),  # words for the reader, as MMMU writes them
    ],
)
def test_places_of_pictures_are_taken_out_of_questions(folder, question, asked):
    """The chat template puts pictures in; a second placeholder would ask for a picture more."""
    assert task(folder / "q.json", [ROW | {"question": question}])[0].question == asked
    two = ROW | {"images": ["0.png", "1.png"], "question": "<image><image>\nSame?"}
    assert task(folder / "q.json", [two])[0].question == "Same?"


@pytest.mark.parametrize("name", ["q.csv", "q.json", "q.jsonl"])
def test_a_table_in_another_encoding_says_where(folder, name):
    lines = {"q.csv": "question,answer\nq?,yes\ncaf\xe9?,no\n", "q.json": '[\n\n{"question": "caf\xe9?"}]'}
    text = lines.get(name, '{"question": "q?", "answer": "a"}\n\n{"question": "caf\xe9?"}\n')
    (folder / name).write_bytes(text.encode("latin-1"))
    refused(f"{name}, line 3 is not UTF-8: ", folder / name)
    refused("Save it as UTF-8, or correct task.path", folder / name)
    (folder / "count").mkdir()
    (folder / "count" / "x.txt").write_bytes("q?\tYes\ncaf\xe9?\tNo\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"x.txt, line 2 is not UTF-8"):
        MME(str(folder)).read()


def test_cells_of_csv_may_hold_lines(folder):
    (one,) = task(folder / "q.csv", [ROW | {"question": "one\r\ntwo"}])
    assert one.question == "one\r\ntwo"


def bitmap(path, corner, size=400):
    """A picture without compression, 480 kB whatever it shows."""
    pixels = np.zeros((size, size, 3), np.uint8)
    pixels[corner] = 255
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("corner", [(0, 0), (-1, -1)])
def test_another_picture_of_the_same_name_and_size_is_another_content(folder, corner):
    """And the same one elsewhere, or touched, is not."""
    bitmap(folder / "x.bmp", (0, 1))
    first = task(folder / "q.json", [ROW | {"image": "x.bmp"}]).content()
    size = (folder / "x.bmp").stat().st_size
    shutil.copytree(folder, folder / "copy")
    os.utime(folder / "copy" / "x.bmp", (1, 1))
    assert task(folder / "copy" / "q.json").content() == first
    bitmap(folder / "x.bmp", corner)
    assert (folder / "x.bmp").stat().st_size == size
    assert task(folder / "q.json").content() != first


def test_a_file_of_pictures_is_looked_at_once_and_a_lacking_one_not(folder):
    data = (folder / "0.png").read_bytes()
    rows = [{"question": "q?", "answer": "yes", "image": data} for _ in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "q.parquet")
    pictures._ends.cache_clear()
    first = task(folder / "q.parquet").content()
    assert task(folder / "q.parquet").content() == first
    assert pictures._ends.cache_info().misses == 1
    assert task(folder / "q.json", [ROW | {"image": "late.png"}]).content()
