"""Files of questions with values of another kind, cut off or nested too deep: one message that names file and place."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from btp.tasks.benchmarks.docvqa import DocVQA
from btp.tasks.benchmarks.gqa import GQA
from btp.tasks.benchmarks.mmbench import MMBench
from btp.tasks.benchmarks.pope import POPE
from btp.tasks.benchmarks.scienceqa import ScienceQA
from btp.tasks.files.calibration_sets import LlavaInstruct
from btp.tasks.files.json_nesting import LEVELS, json_of, nests_deeper
from btp.tasks.files.vqa_folder import VQAFolder
from btp.tasks.shown import brief
from btp.tasks.vqa import VQA

ROW = {"id": "a", "image": "0.png", "question": "q?", "answer": "yes"}
BOX = [0.1, 0.1, 0.5, 0.5]


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "0.png")
    return tmp_path


def read(path, rows=None):
    if rows is not None:
        path.write_text(json.dumps(rows))
    return VQA("mine", VQAFolder(str(path)), "exact", max_new_tokens=8)


ODD = [
    ({"labels": ["a", "b"], "boxes": [BOX]}, "`labels` holds 2 names, but `boxes` 1 box(es)"),
    ({"labels": ["a"]}, "`labels` holds 1 names, but `boxes` 0 box(es)"),
    ({"labels": 5}, "`labels` is 5, which is no list"),
    ({"labels": [["a"]], "boxes": [BOX]}, "`labels` holds ['a'], which is neither text nor a number"),
    ({"boxes": {"x0": 0}}, "`boxes` holds {'x0': 0}, which is not [x0, y0, x1, y1]"),
    ({"question": 5}, "`question` holds 5, which is no text"),
    ({"question": ["q?"]}, "`question` holds ['q?'], which is no text"),
    ({"id": {"n": 1}}, "row 2: `id` holds {'n': 1}, which is neither text nor a number"),
    ({"ability": ["a"]}, "`ability or category` holds ['a'], which is neither text nor a number"),
    ({"group": {"a": 1}}, "`group` holds {'a': 1}, which is neither text nor a number"),
    ({"answer": {"a": 1}}, "`answer` holds {'a': 1}, which is neither text nor a number"),
    ({"choices": "a, b"}, "`choices` is 'a, b', which is no list"),
]


@pytest.mark.parametrize(("change", "message"), ODD)
def test_a_value_of_another_kind_among_good_ones_is_named(folder, change, message):
    with pytest.raises(ValueError) as error:
        read(folder / "q.json", [ROW | {"id": "z"}, ROW | change])
    assert message in str(error.value)
    assert str(folder / "q.json") in str(error.value)


def test_boxes_at_the_end_may_have_no_label(folder):
    found = read(folder / "q.json", [ROW | {"boxes": [BOX, BOX, BOX], "labels": ["a", "", None]}])
    assert found[0].labels == ("a", "", "")
    assert read(folder / "q.json", [ROW | {"boxes": [BOX], "labels": [None]}])[0].labels == ()


DEEP = "[" * 500 + "]" * 500


@pytest.mark.parametrize("deep", [DEEP, "[" * 100_000, "[" * 100_000 + "]" * 100_000])
def test_deep_json_is_named(folder, deep):
    whole, lines, row = folder / "q.json", folder / "q.jsonl", json.dumps(ROW)
    whole.write_text(deep)
    with pytest.raises(ValueError, match=r"q\.json is no JSON: (it is nested more than 64|Expecting)"):
        read(whole)
    lines.write_text(f'{row}\n{row[:-1]}, "boxes": {deep}}}\n')
    with pytest.raises(ValueError, match=r"q\.jsonl, line 2 is no JSON: (it is nested more than 64|Expecting)"):
        read(lines)


def test_a_deep_cell_of_a_text_table_is_a_text(folder):
    (folder / "q.csv").write_text(f'id,image,question,answer,labels\na,0.png,q?,yes,"{DEEP}"\n')
    with pytest.raises(ValueError, match=r"`labels` is '\[\[.*\]\]', which is no list"):
        read(folder / "q.csv")


def test_how_deep_a_value_is():
    deep = 0
    for _ in range(LEVELS):
        deep = [deep]
    assert not nests_deeper(deep)
    assert nests_deeper({"a": deep})
    circle = []
    circle.append(circle)
    assert nests_deeper(circle)
    assert json_of('{"a": [1]}') == {"a": [1]}
    assert len(brief({"a": ["x" * 1000] * 1000})) <= 60


def test_a_corrupt_page_of_a_parquet_table_is_named(folder):
    path = folder / "q.parquet"
    rows = [ROW | {"id": str(i), "question": f"what is {i} ?" * 20} for i in range(300)]
    pq.write_table(pa.Table.from_pylist(rows), path, compression="snappy")
    data = bytearray(path.read_bytes())
    data[4:1500] = b"\xff" * 1496
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"q\.parquet is broken: row group 0 of 1 cannot be read: .*task\.path"):
        read(path)


def dump(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


BENCHMARKS = [
    (GQA("", "q.json", "images"), {"q.json": {"7": {"question": "q?"}}}, r"q\.json, 7 lacks `imageId`"),
    (GQA("", "q.json", "images"), {"q.json": {"7": "q?"}}, r"q\.json, 7 is 'q\?', not an object"),
    (GQA("", "q.json", "images"), {"q.json": ["7"]}, r"q\.json is \['7'\], not an object"),
    (POPE("", ["a"], "{subset}.json", "images"), {"a.json": [{"text": "q?"}]}, r"a\.json, entry 0 lacks `question_id`"),
    (POPE("", ["a"], "{subset}.json", "images"), {"a.json": [3]}, r"a\.json, entry 0 is 3, not an object"),
    (DocVQA("", "q.json"), {"q.json": {"rows": []}}, r"q\.json lacks `data`"),
    (DocVQA("", "q.json"), {"q.json": {"data": {"a": 1}}}, r"q\.json, data holds \{'a': 1\}, not a list of objects"),
    (
        DocVQA("", "q.json"),
        {"q.json": {"data": [{"questionId": 1, "image": "a", "question": "q?", "answers": "yes"}]}},
        r"q\.json, data, entry 0: `answers` is 'yes', not a list of texts",
    ),
    (
        ScienceQA("", "test", "images", False),
        {"pid_splits.json": {"test": ["1"]}, "problems.json": {"1": {"choices": ["a"], "answer": 1}}},
        r"problems\.json, 1: `answer` is 1, not the place of one of its 1 `choices`",
    ),
    (
        ScienceQA("", "test", "images", False),
        {"pid_splits.json": {"test": ["1"]}, "problems.json": {}},
        r"problems\.json lacks `1`",
    ),
    (
        MMBench("", "q.tsv", "category"),
        {"q.tsv": "index\tquestion\timage\tA\tB\tcategory\n1\tq?\n"},
        r"q\.tsv, byte .*: a row has 2 of 6 cells",
    ),
    (
        LlavaInstruct("", "q.json", "images"),
        {"q.json": [{"id": 1, "image": "a.png", "conversations": [{"from": "human"}]}]},
        r"q\.json, entry 0, conversations, entry 0 lacks `value`",
    ),
]


@pytest.mark.parametrize(("reader", "files", "message"), BENCHMARKS)
def test_an_entry_of_a_benchmark_is_named(tmp_path, reader, files, message):
    for name, content in files.items():
        dump(tmp_path / name, content)
    (tmp_path / "images").mkdir(exist_ok=True)
    object.__setattr__(reader, "path", str(tmp_path))
    with pytest.raises(ValueError, match=message):
        reader.read()


def test_a_question_that_is_no_text_is_named(tmp_path):
    (tmp_path / "images").mkdir()
    dump(tmp_path / "q.json", {"7": {"question": 7, "imageId": "a", "answer": "yes"}})
    with pytest.raises(ValueError, match="sample 7: its question is 7, not a text"):
        VQA("gqa", GQA(str(tmp_path), "q.json", "images"), "exact", max_new_tokens=8)
