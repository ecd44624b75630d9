"""Any table of questions: every format gives the same samples, pictures stay closed, faults are named."""

import csv
import json
import pickle
import re
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from btp.tasks.files import images as pictures
from btp.tasks.files.images import picture_sizes
from btp.tasks.files.local import read_json
from btp.tasks.files.vqa_folder import VQAFolder
from btp.tasks.vqa import VQA, shuffled

ROWS = [
    {"id": "a/1", "image": "pictures/0.png", "question": "what is it?", "answer": "dog", "ability": "things"},
    {
        "id": "a/2",
        "image": "pictures/1.png",
        "question": "how many?",
        "answers": ["2", "two", "2"],
        "category": "counts",
    },
    {"id": "a/3", "images": ["pictures/0.png", "pictures/2.png"], "question": "same?", "answer": "no"},
]


@pytest.fixture
def folder(tmp_path):
    """Three pictures of different sizes and tones."""
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        Image.new("RGB", (8 + i, 6), (40 * i, 9, 0)).save(tmp_path / "pictures" / f"{i}.png")
    return tmp_path


def task(path, rows=None, metric="exact", **more):
    """The task of a table, written first where rows are given."""
    if rows is not None:
        path.write_text(json.dumps(rows))
    known = {key: more.pop(key) for key in ("images", "columns") if key in more}
    return VQA("mine", VQAFolder(str(path), **known), metric, max_new_tokens=8, **more)


def contents(some):
    """What samples say, and the pixels of their pictures."""
    asked = [(s.id, s.question, s.reference, s.references, s.ability) for s in some]
    return asked, [[p.tobytes() for p in s.images] for s in some]


def write(folder, kind):
    """The rows in a format; parquet holds the pictures themselves."""
    path = folder / f"questions.{kind}"
    if kind == "json":
        path.write_text(json.dumps({"info": "mine", "questions": ROWS}))
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n")
    elif kind in ("csv", "tsv"):
        names = list(dict.fromkeys(name for row in ROWS for name in row))
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, names, delimiter="\t" if kind == "tsv" else ",")
            table.writeheader()
            for row in ROWS:
                table.writerow({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()})
    else:
        rows = []
        for row in ROWS:
            given = [row["image"]] if "image" in row else row["images"]
            cells = [{"bytes": (folder / name).read_bytes(), "path": name} for name in given]
            answers = row.get("answers") or [row["answer"]]
            ability = row.get("ability") or row.get("category") or "all"
            rows.append({**row, "images": cells, "answers": answers, "ability": ability, "image": None})
        rows = [{k: v for k, v in row.items() if k not in ("image", "answer", "category")} for row in rows]
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    return path


def test_every_format_gives_the_same_samples(folder):
    tables = [task(write(folder, kind)) for kind in ("json", "jsonl", "csv", "tsv", "parquet")]
    found = [contents([t[i] for i in range(len(t))]) for t in tables]
    assert found[0][0] == [
        ("a-1", "what is it?", "dog", (), "things"),
        ("a-2", "how many?", "2", ("2", "two", "2"), "counts"),
        ("a-3", "same?", "no", (), "all"),
    ]
    assert [len(p) for p in found[0][1]] == [1, 1, 2]
    assert all(other == found[0] for other in found[1:])


def test_a_folder_with_one_table_is_enough_and_columns_may_have_other_names(folder):
    task(folder / "q.json", [{"text": "what?", "label": True, "image": "pictures/0.png"}], columns={
        "question": "text", "answer": "label"})  # fmt: skip
    (one,) = task(folder, columns={"question": "text", "answer": "label"})
    assert (one.id, one.question, one.reference, one.ability) == ("000000", "what?", "yes", "all")
    other = folder / "elsewhere"
    other.mkdir()
    moved = task(other / "q.json", [ROWS[0]], images=str(folder))
    assert moved[0].images[0].size == (8, 6)


def test_pictures_in_parquet_as_plain_bytes(folder):
    data = (folder / "pictures" / "1.png").read_bytes()
    rows = [{"question": f"q{i}", "answer": "x", "image": data} for i in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "q.parquet", row_group_size=2)
    found = task(folder / "q.parquet")
    assert [s.images[0].size for s in found] == [(9, 6)] * 5


def test_pictures_are_opened_only_when_somebody_looks(folder, monkeypatch):
    """Reading, counting, sizes and digests decode nothing; a look decodes anew and keeps nothing."""
    decoded = []
    real = Image.Image.convert
    monkeypatch.setattr(Image.Image, "convert", lambda self, mode: decoded.append(mode) or real(self, mode))
    found = task(folder / "q.json", ROWS)
    samples = [found[i] for i in range(3)]
    assert [picture_sizes(s.images) for s in samples] == [[(6, 8)], [(6, 9)], [(6, 8), (6, 10)]]
    assert bool(samples[0].images)
    assert found.content()["digest"]
    assert decoded == []
    first, again = samples[0].images[0], samples[0].images[0]
    assert len(decoded) == 2
    assert first is not again
    assert len(pickle.dumps(samples)) < 3000
    assert [p.size for p in samples[2].images[:]] == [(8, 6), (10, 6)]


def test_a_thousand_large_pictures_take_no_memory(folder):
    """Holding every sample of a table costs as much as its text."""
    import tracemalloc

    Image.fromarray(np.zeros((1500, 1500, 3), np.uint8)).save(folder / "large.png")
    (folder / "q.json").write_text(json.dumps([{"image": "large.png", "question": "q?", "answer": "a"}] * 1000))
    tracemalloc.start()
    found = task(folder / "q.json")
    samples = [found[i] for i in range(1000)]
    assert samples[500].images[0].size == (1500, 1500)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 8 * 2**20  # one picture alone has 6.75 MB of pixels, all 6.6 GB


def test_only_pictures_that_are_asked_need_to_be_there(folder):
    rows = [*ROWS, {"id": "late", "image": "nowhere.png", "question": "q", "answer": "a"}]
    found = task(folder / "q.json", rows)
    assert [found[i].id for i in range(3)] == ["a-1", "a-2", "a-3"]
    with pytest.raises(ValueError, match=r"sample late: its picture .*nowhere.png is missing. .* correct task.path"):
        found[3]


def test_prompts_hold_lettered_choices_and_how_to_answer(folder):
    row = {"question": "which?", "choices": ["dog", "cat"], "answer": "cat", "image": "pictures/0.png"}
    found = task(folder / "q.json", [row], "multiple_choice", suffix="Answer with the letter.")
    assert found[0].question == "which?\nA. dog\nB. cat\nAnswer with the letter."
    assert found[0].reference == "B"
    assert found.score(found[0], "B. cat") == 1
    assert found.chance([found[0]]) == {"all": 1}


def test_the_order_is_drawn_by_seed_and_keeps_groups_together(folder):
    rows = [{"question": f"q{i}", "answer": "yes", "group": f"g{i // 2}", "ability": "count"} for i in range(20)]
    plain, one, same, two = (task(folder / "q.json", rows, "mme", shuffle_seed=s) for s in (None, 1, 1, 2))
    ids = [[s.id for s in t] for t in (plain, one, same, two)]
    assert ids[0] == sorted(ids[0])
    assert ids[1] == ids[2]
    assert len({tuple(i) for i in ids}) == 3
    assert sorted(ids[1]) == ids[0]
    groups = [s.group for s in one]
    assert groups[::2] == groups[1::2]
    assert [s.id for s in shuffled(list(plain), 1)] == ids[1]


def test_abilities_choose(folder):
    assert [s.id for s in task(folder / "q.json", ROWS, abilities=["counts"])] == ["a-2"]
    with pytest.raises(ValueError, match=r"task.dataset.abilities holds \['reading'\]. Choose from: things, counts"):
        task(folder / "q.json", ROWS, abilities=["reading"])


def test_the_digest_follows_questions_answers_and_pictures_but_not_the_place(folder, tmp_path_factory):
    first = task(folder / "q.json", ROWS).content()
    assert task(folder / "other.json", ROWS).content() == first
    assert task(folder / "q.json", ROWS, shuffle_seed=3).content() == first
    assert task(folder / "q.json", [*ROWS[:2], ROWS[2] | {"answer": "yes"}]).content() != first
    Image.new("RGB", (80, 60)).save(folder / "pictures" / "1.png")
    assert task(folder / "q.json", ROWS).content() != first


def test_chance_is_the_best_constant_answer(folder):
    rows = [{"question": "q", "answer": a, "ability": "x"} for a in ("red", "red", "blue")]
    rows += [{"question": "q", "answer": "5", "ability": "y"}]
    found = task(folder / "q.json", rows)
    assert found.chance([found[i] for i in range(4)]) == {"x": pytest.approx(2 / 3), "y": 1}


def test_boxes_come_along(folder):
    (one,) = task(folder / "q.json", [ROWS[0] | {"boxes": [[0, 0, 0.5, 1]], "labels": ["dog"]}])
    assert (one.boxes, one.labels) == (((0, 0, 0.5, 1),), ("dog",))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "task.path holds no question"),
        ([{"image": "pictures/0.png", "answer": "x"}], "sample 000000 has no `question`"),
        ([{"question": "q", "image": "pictures/0.png"}], "sample 000000 has no `answer` (or `answers`)"),
        ([{"question": "q", "answers": []}], "has no `answer`"),
        ([ROWS[0], ROWS[0]], "1 id(s) stand for several samples, for example a-1"),
        ([{"question": "q", "answer": "x", "image": {"url": "http"}}], "a picture is a path, or bytes in a parquet"),
        ([ROWS[0] | {"boxes": [[0, 0, 20, 30]]}], "is not [x0, y0, x1, y1] in shares of the picture's sides"),
        ("just text", "holds no list of objects"),
        ({"a": [{"x": 1}], "b": [{"y": 1}]}, "holds no list of objects"),
    ],
)
def test_tables_that_are_wrong_say_where(folder, rows, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        task(folder / "q.json", rows)


def test_paths_that_are_wrong_say_what_to_set(folder):
    with pytest.raises(ValueError, match=r"there is no such file or folder. Name a table of questions"):
        task(folder / "none.json")
    with pytest.raises(ValueError, match=r"holds no table of questions. Set task.path"):
        task(folder)
    for name in ("a.json", "b.csv"):
        (folder / name).write_text("[]")
    with pytest.raises(ValueError, match=re.escape("holds 2 tables: a.json, b.csv. Set task.path to the one to read")):
        task(folder)
    (folder / "q.txt").write_text("x")
    with pytest.raises(ValueError, match=re.escape("which is none of .json, .jsonl, .csv, .tsv, .parquet")):
        task(folder / "q.txt")
    (folder / "q.json").write_text("{no json")
    with pytest.raises(ValueError, match=r"q.json is no JSON: .* correct task.path"):
        task(folder / "q.json")
    (folder / "q.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(ValueError, match=r"q.parquet is no parquet file"):
        task(folder / "q.parquet")
    with pytest.raises(ValueError, match=re.escape("columns holds ['quetsion']. Choose from: id, image")):
        task(folder / "q.json", ROWS, columns={"quetsion": "text"})
    with pytest.raises(ValueError, match=r"columns names text, but .* has no such column. It has: id, image, question"):
        task(folder / "q.json", ROWS, columns={"question": "text"})


def test_a_picture_that_cannot_be_read_says_which(folder):
    found = task(folder / "q.json", ROWS)
    (folder / "pictures" / "1.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"sample a/2: the picture .*1.png cannot be read: no picture format is known"):
        found[1].images[0]
    whole = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(whole, "png")
    (folder / "pictures" / "1.png").write_bytes(whole.getvalue()[:3000])
    with pytest.raises(ValueError, match=r"1.png cannot be read: .*truncated.* Replace the file, or drop the sample"):
        found[1].images[0]


def test_a_row_group_is_read_once_for_neighbours(folder, monkeypatch):
    data = (folder / "pictures" / "0.png").read_bytes()
    rows = [{"question": f"q{i}", "answer": "x", "image": data} for i in range(6)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "groups.parquet", row_group_size=3)
    found = task(folder / "groups.parquet")
    pictures._column.cache_clear()
    assert all(s.images[0].size == (8, 6) for s in found)
    assert pictures._column.cache_info().misses == 2


def test_a_broken_line_of_json_lines_is_named(tmp_path):
    """Its number, not that of the file read as one document."""
    (tmp_path / "rows.jsonl").write_text('{"id": "a"}\n{not json\n')
    with pytest.raises(ValueError, match=r"rows.jsonl, line 2 is no JSON: .* Correct it"):
        read_json(tmp_path / "rows.jsonl", "task.path")
    (tmp_path / "rows.jsonl").write_text("nothing\n")
    with pytest.raises(ValueError, match=r"rows.jsonl is no JSON: .* or correct task.path"):
        read_json(tmp_path / "rows.jsonl", "task.path")
