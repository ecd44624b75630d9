"""Official layouts: each yaml reads a tiny copy of its benchmark, and says what is missing from an incomplete one."""

import base64
import json
import re
from io import BytesIO

import pytest
from jobs import composed
from PIL import Image

from btp.runner.datasets import make_dataset


def picture(path, tone=0):
    """A picture file of 12 x 8 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8), (tone, 0, 0)).save(path)
    return path


def dump(path, content, lines=False):
    """Write JSON, or one object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, content)) if lines else json.dumps(content))


def gqa(root):
    """questions by id, as in questions1.2.zip."""
    types = {"detailed": "directOf", "semantic": "rel", "structural": "query"}
    q = {"semantic": [], "isBalanced": True, "types": types, "entailed": [], "semanticStr": ""}
    asked = {
        "201307251": q | {"question": "Is it overcast?", "imageId": "n161313", "answer": "no", "fullAnswer": "No."},
        "201640614": q | {"question": "Who wears it?", "imageId": "n235859", "answer": "women", "fullAnswer": ""},
    }
    dump(root / "testdev_balanced_questions.json", asked)
    for name in ("n161313", "n235859"):
        picture(root / "images" / f"{name}.jpg")


def pope(root):
    """One question a line, called .json in the repository."""
    for i, subset in enumerate(("random", "popular", "adversarial")):
        image = "COCO_val2014_000000310196.jpg"
        asked = [
            {"question_id": n, "image": image, "text": f"Is there a {what} in the image?", "label": label}
            for n, what, label in ((1, "snowboard", "yes"), (2, "dog", "no"))
        ]
        dump(root / f"coco_pope_{subset}.json{'l' if i == 2 else ''}", asked, lines=True)
    picture(root / "val2014" / "COCO_val2014_000000310196.jpg")


def mme(root):
    """Categories with pictures beside their texts, and one with both apart."""
    for name in ("000000006040", "000000007816"):
        picture(root / "count" / f"{name}.jpg")
        (root / "count" / f"{name}.txt").write_text(
            "Are there two? Please answer yes or no.\tYes\nAre there three? Please answer yes or no.\tNo\n"
        )
    picture(root / "artwork" / "images" / "10002.png")
    (root / "artwork" / "questions_answers_YN").mkdir()
    (root / "artwork" / "questions_answers_YN" / "10002.txt").write_text("Is it a?\tYes\nIs it b?\tNo")
    (root / "eval_tool").mkdir()


def mmbench(root):
    """A table with base64 pictures, a question over two lines, a row that points to another one's picture."""
    buffer = BytesIO()
    Image.effect_noise((12, 8), 9).convert("RGB").save(buffer, "png")
    data = base64.b64encode(buffer.getvalue()).decode()
    names = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category"]
    rows = [
        [
            "241",
            '"Which one,\nsays ""the"" text?"',
            "nan",
            "one",
            "two",
            "three",
            "four",
            "A",
            "ocr",
            data,
            "x",
            "fine",
        ],
        ["1000241", "Which one?", "nan", "two", "one", "four", "three", "B", "ocr", "241", "x", "fine"],
        ["252", "Größer?", "Look closely.", "yes", "no", "", "nan", "B", "size", data, "x", "coarse"],
    ]
    root.mkdir(exist_ok=True)
    lines = ["\t".join(cells) for cells in [names, *rows]]
    (root / "mmbench_dev_20230712.tsv").write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")


def scienceqa(root):
    """problems by id, and the ids of each split."""
    base = {"grade": "grade2", "subject": "natural science", "topic": "", "task": "closed choice", "split": "test"}
    problems = {
        "4": base | {"question": "Which is hard?", "choices": ["wool", "rock"], "answer": 1, "hint": "", "image": None},
        "11": base
        | {"question": "Which?", "choices": ["a", "b", "c"], "answer": 2, "hint": "See.", "image": "image.png"},
        "20": base | {"question": "?", "choices": ["a", "b"], "answer": 0, "hint": "", "image": None, "split": "train"},
    }
    dump(root / "problems.json", problems)
    dump(root / "pid_splits.json", {"train": ["20"], "test": ["4", "11"]})
    picture(root / "images" / "test" / "11" / "image.png")


def textvqa(root):
    """data with ten answers each."""
    rows = [
        {"question": "what brand?", "image_id": "003a8ae2ef43b901", "question_id": 34602, "image_classes": ["Camera"]}
        | {"answers": ["dakota"] * 6 + ["clos culombu"] * 2 + ["nous", "dakota digital"], "set_name": "val"}
    ]
    dump(root / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "dataset_version": "0.5.1", "data": rows})
    picture(root / "train_images" / "003a8ae2ef43b901.jpg")


def docvqa(root):
    """data with paths of pages and several answers."""
    rows = [
        {"questionId": 49153, "question": "What is ITC's brand?", "image": "documents/pybv0228_81.png", "docId": 14465}
        | {"answers": ["Itc limited", "itc limited"], "data_split": "val"}
    ]
    dump(root / "val_v1.0.json", {"dataset_name": "SP-DocVQA", "data": rows})
    dump(root / "val_v1.0_withQT.json", {"data": [rows[0] | {"question_types": ["figure/diagram", "layout"]}]})
    picture(root / "documents" / "pybv0228_81.png")


def chartqa(root):
    """Two files of questions beside a folder of pictures."""
    dump(root / "test" / "test_human.json", [{"imgname": "41.png", "query": "How many bars?", "label": "3"}])
    dump(root / "test" / "test_augmented.json", [{"imgname": "41.png", "query": "What share?", "label": "57.1"}])
    picture(root / "test" / "png" / "41.png")


COPIES = {f.__name__: f for f in (gqa, pope, mme, mmbench, scienceqa, textvqa, docvqa, chartqa)}
WORD = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


def task(name, root, *overrides):
    """The task as a command line makes it, in the order of the files."""
    config = composed(f"task={name}", f"task.path={root}", "task.dataset.shuffle_seed=null", *overrides)
    return make_dataset(config["task"]["dataset"])


@pytest.mark.long
@pytest.mark.parametrize("name", COPIES)
def test_every_picture_of_every_benchmark_opens_and_the_right_answer_scores_1(name, tmp_path):
    COPIES[name](tmp_path)
    found = task(name, tmp_path)
    for sample in found:
        assert [p.size for p in sample.images] == [(12, 8)]
        assert found.score(sample, sample.reference) == 1
        assert found.score(sample, "zebra") == 0
    samples = list(found)
    assert found.chance(samples).keys() == {s.ability for s in samples}
    drawn = make_dataset(composed(f"task={name}", f"task.path={tmp_path}")["task"]["dataset"])
    assert sorted(s.id for s in drawn) == sorted(s.id for s in samples)


@pytest.mark.parametrize(
    ("name", "at", "wanted"),
    [
        ("gqa", 0, ("201307251", "Is it overcast?" + WORD, "no", "query")),
        ("pope", 5, ("adversarial-2", "Is there a dog in the image?" + WORD, "no", "adversarial")),
        ("mme", 1, ("count-000000006040-1", "Are there three? Please answer yes or no.", "no", "count")),
        ("mme", 4, ("artwork-10002-0", "Is it a?", "yes", "artwork")),
        ("mmbench", 0, ("241", f'Which one,\nsays "the" text?\nA. one\nB. two\nC. three\nD. four{LETTER}', "A", "ocr")),
        ("mmbench", 2, ("252", f"Look closely.\nGrößer?\nA. yes\nB. no{LETTER}", "B", "size")),
        ("scienceqa", 0, ("11", f"Context: See.\nWhich?\nA. a\nB. b\nC. c{LETTER}", "C", "natural science")),
        ("textvqa", 0, ("34602", "what brand?" + WORD, "dakota", "text")),
        ("docvqa", 0, ("49153", "What is ITC's brand?" + WORD, "Itc limited", "document")),
        ("chartqa", 1, ("augmented-00000", "What share?" + WORD, "57.1", "augmented")),
    ],
)
def test_questions_are_asked_as_the_benchmark_does(name, at, wanted, tmp_path):
    COPIES[name](tmp_path)
    sample = task(name, tmp_path)[at]
    assert (sample.id, sample.question, sample.reference, sample.ability) == wanted


def test_groups_and_references_come_along(tmp_path):
    for name in ("mme", "mmbench", "textvqa"):
        COPIES[name](tmp_path / name)
    assert [s.group for s in task("mme", tmp_path / "mme")][:3] == ["000000006040", "000000006040", "000000007816"]
    bench = task("mmbench", tmp_path / "mmbench")
    assert [s.group for s in bench] == ["241", "241", "252"]
    assert bench[0].images[0].tobytes() == bench[1].images[0].tobytes()
    assert len(task("textvqa", tmp_path / "textvqa")[0].references) == 10


@pytest.mark.long
def test_other_splits_and_parts_are_a_setting(tmp_path):
    for name in ("scienceqa", "docvqa", "mme", "pope", "chartqa"):
        COPIES[name](tmp_path / name)
    reader = "task.dataset.reader"
    assert len(task("scienceqa", tmp_path / "scienceqa", f"{reader}.only_pictures=false")) == 2
    types = task("docvqa", tmp_path / "docvqa", f"{reader}.questions=val_v1.0_withQT.json")
    assert types[0].ability == "figure/diagram"
    assert len(task("mme", tmp_path / "mme", f"{reader}.categories=[artwork]")) == 2
    assert {s.ability for s in task("pope", tmp_path / "pope", f"{reader}.subsets=[popular]")} == {"popular"}
    assert len(task("chartqa", tmp_path / "chartqa", f"{reader}.parts=[human]")) == 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "gone", "message"),
    [
        (
            "gqa",
            "testdev_balanced_questions.json",
            "GQA needs there: testdev_balanced_questions.json and images/<imageId>",
        ),
        ("gqa", "images", "cs.stanford.edu/people/dorarad/gqa"),
        ("pope", "coco_pope_popular.json", "POPE needs there: coco_pope_random.json, coco_pope_popular.json"),
        ("pope", "val2014", "val2014.zip of cocodataset.org"),
        ("mmbench", "mmbench_dev_20230712.tsv", "github.com/open-compass/MMBench"),
        ("scienceqa", "pid_splits.json", "github.com/lupantech/ScienceQA"),
        ("textvqa", "train_images", "textvqa.org/dataset"),
        (
            "docvqa",
            "val_v1.0.json",
            "of its kind there are val_v1.0_withQT.json (task.dataset.reader.questions chooses)",
        ),
        ("chartqa", "test/png", "github.com/vis-nlp/ChartQA"),
    ],
)
def test_what_is_missing_and_where_it_comes_from_is_said(name, gone, message, tmp_path):
    COPIES[name](tmp_path)
    (tmp_path / gone).rename(tmp_path / f"{name}-elsewhere")
    with pytest.raises(ValueError, match=re.escape(message)) as found:
        task(name, tmp_path)
    assert f"task.path is {tmp_path}" in str(found.value)
    assert f"{tmp_path / gone} is missing" in str(found.value)


@pytest.mark.long
@pytest.mark.parametrize("name", COPIES)
def test_a_missing_folder_and_a_missing_picture_are_named(name, tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"task.path is {tmp_path / 'no'}, but there is no folder")):
        task(name, tmp_path / "no")
    COPIES[name](tmp_path)
    found = task(name, tmp_path)
    source = found[0].images.sources[0]
    source.path.unlink()
    with pytest.raises(
        ValueError, match=re.escape(f"sample {found._samples[0].images.sample}: its picture {source.name}")
    ):
        found[0]


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("scienceqa", "split=val", "task.dataset.reader.split is 'val'. Choose from: train, test"),
        ("mmbench", "ability=skill", "task.dataset.reader.ability is 'skill', but"),
        ("mme", "categories=[poses]", "(existence, count ...)"),
        ("chartqa", "split=val", "val/val_human.json is missing"),
        ("pope", "subsets=[rare]", "coco_pope_rare.json is missing; of its kind there are coco_pope_popular.json"),
    ],
)
def test_another_split_that_is_not_there(name, override, message, tmp_path):
    COPIES[name](tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)):
        task(name, tmp_path, f"task.dataset.reader.{override}")


def test_broken_files_are_named(tmp_path):
    for name in ("mme", "mmbench", "textvqa"):
        COPIES[name](tmp_path / name)
    (tmp_path / "mme" / "count" / "000000006040.txt").write_text("Is it? Yes")
    with pytest.raises(ValueError, match=r"000000006040.txt, line 1, has no tab between question and answer"):
        task("mme", tmp_path / "mme")
    (tmp_path / "mmbench" / "mmbench_dev_20230712.tsv").write_text("index\tquestion\n1\tx\n")
    with pytest.raises(ValueError, match="lacks the columns image, A, B"):
        task("mmbench", tmp_path / "mmbench")
    dump(
        tmp_path / "textvqa" / "TextVQA_0.5.1_val.json",
        {"data": [{"question_id": 1, "image_id": "x", "question": "q"}]},
    )
    with pytest.raises(ValueError, match="sample 1 has no answer, and nothing can be scored without"):
        task("textvqa", tmp_path / "textvqa")
