"""Labelled boxes: read from three layouts, matched, and scored as COCO does; what is wrong is named."""

import json

import pytest
from PIL import Image

from btp.tasks.detection.average_precision import average_precision
from btp.tasks.detection.coco import CocoFiles
from btp.tasks.detection.matching import agreement, iou, matched
from btp.tasks.detection.task import Boxes
from btp.tasks.detection.voc import VOC
from btp.tasks.pocketboxes.task import PocketBoxes

PERSON = {"id": 1, "name": "person"}
DOG = {"id": 18, "name": "dog"}


def labels():
    """Two pictures of 80 x 60, one object in each and a crowd in the second."""
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 80, "height": 60},
            {"id": 9, "file_name": "b.png", "width": 80, "height": 60},
        ],
        "categories": [PERSON, DOG],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 18, "bbox": [8, 6, 40, 30], "area": 900, "iscrowd": 0},
            {"id": 2, "image_id": 9, "category_id": 1, "bbox": [0, 0, 20, 20.5], "iscrowd": 0},
            {"id": 3, "image_id": 9, "category_id": 1, "bbox": [30, 30, 50, 30], "iscrowd": 1},
        ],
    }


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (80, 60)).save(tmp_path / name)
    return tmp_path


def write(folder, found):
    (folder / "labels.json").write_text(json.dumps(found))
    return CocoFiles(str(folder / "labels.json"))


def test_a_coco_file_is_read_in_shares_of_the_sides(folder):
    task = Boxes("mine", write(folder, labels()), 0.5)
    assert task.names == ("person", "dog")
    assert task[0].labels == ("dog",)
    assert task[0].boxes == ((0.1, 0.1, 0.6, 0.6),)
    assert task[1].labels == ("person",)  # crowds are no objects to find
    truth = task.truth([task[1], task[0]])
    assert [a["image_id"] for a in truth["annotations"]] == [0, 0, 1]
    assert truth["annotations"][2]["area"] == 900
    assert task.content() != Boxes("mine", write(folder, labels() | {"annotations": []}), 0.5).content()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 3}, r"labels.json, annotations, entry 0: `category_id` is 3, but `categories` has no such id"),
        ({"image_id": 8}, "`image_id` is 8, but `images` lists no such id"),
        (
            {"bbox": [70, 6, 40, 30]},
            r"`bbox` reaches from \(70, 6\) to \(110, 36\), outside of a.png, which has 80 x 60",
        ),
        ({"bbox": [8, 6, -4, 30]}, "`bbox` ends before it begins"),
        ({"bbox": [8, 6, 4]}, r"`bbox` is \[8, 6, 4\], not \[x, y, width, height\]"),
        ({"area": "large"}, "`area` is 'large', not a number"),
    ],
)
def test_a_label_that_makes_no_sense_is_named(folder, change, message):
    found = labels()
    found["annotations"][0] |= change
    with pytest.raises(ValueError, match=message):
        Boxes("mine", write(folder, found), 0.5)


def test_files_that_are_not_there_are_named(folder):
    with pytest.raises(ValueError, match=r"task.path is .*annotations.*instances_val2017.json is missing"):
        CocoFiles(str(folder), "annotations/instances_val2017.json", "val2017")
    with pytest.raises(ValueError, match="nothing says which file in it has the labels"):
        CocoFiles(str(folder))
    with pytest.raises(ValueError, match=r"lacks `categories`"):
        write(folder, {"images": [], "annotations": []})
    task = Boxes("mine", write(folder, labels()), 0.5)
    (folder / "a.png").unlink()
    with pytest.raises(ValueError, match=r"a.png is missing"):
        task[0]
    with pytest.raises(ValueError, match=r"task.dataset.threshold is 1"):
        Boxes("mine", write(folder, labels()), 1)


def voc(root, box=(9, 7, 48, 36), name="dog"):
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / part).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (80, 60)).save(root / "JPEGImages" / "2007_1.jpg")
    (root / "ImageSets" / "Main" / "val.txt").write_text("2007_1\n")
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    objects = f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>"
    hard = objects.replace("</name>", "</name><difficult>1</difficult>")
    size = "<size><width>80</width><height>60</height></size>"
    (root / "Annotations" / "2007_1.xml").write_text(f"<annotation>{size}{objects}{hard}</annotation>")
    return VOC(str(root), "val")


def test_voc_counts_pixels_from_one(tmp_path):
    task = Boxes("voc", voc(tmp_path), 0.5)
    assert task[0].boxes == ((0.1, 0.1, 0.6, 0.6),)
    assert [a["iscrowd"] for a in task.truth([task[0]])["annotations"]] == [0, 1]


def test_voc_names_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match=r"2007_1.xml, object 0: `name` is 'unicorn', which is none of VOC's 20"):
        Boxes("voc", voc(tmp_path, name="unicorn"), 0.5)
    with pytest.raises(ValueError, match=r"2007_1.xml, object 0: `bndbox` reaches .* outside of 2007_1"):
        Boxes("voc", voc(tmp_path, (9, 7, 88, 36)), 0.5)
    (tmp_path / "Annotations" / "2007_1.xml").write_text("<annotation>")
    with pytest.raises(ValueError, match=r"2007_1.xml is no XML"):
        Boxes("voc", VOC(str(tmp_path), "val"), 0.5)
    with pytest.raises(ValueError, match=r"ImageSets.Main.test.txt is missing; of its kind there are val.txt"):
        Boxes("voc", VOC(str(tmp_path), "test"), 0.5)


def test_boxes_are_matched_by_name_and_overlap():
    assert iou((0, 0, 2, 1), (1, 0, 3, 1)) == pytest.approx(1 / 3)
    truth = [["dog", 1, 0, 0, 0.5, 0.5], ["cat", 1, 0.5, 0.5, 1, 1]]
    found = [["dog", 0.6, 0, 0, 0.5, 0.5], ["dog", 0.9, 0, 0, 0.5, 0.4], ["dog", 0.8, 0.5, 0.5, 1, 1]]
    assert matched(found, truth) == [(1, 0)]  # the surest box takes it, and another name's box does not count
    assert agreement(found, truth) == pytest.approx(2 / 5)
    assert agreement([], []) == 1
    assert agreement([], truth) == 0


def test_average_precision_of_the_truth_of_less_and_of_nothing():
    task = PocketBoxes("test", 0, 12)
    samples = [task[i] for i in range(12)]
    found = [[[name, 1.0, *box] for name, box in zip(s.labels, s.boxes, strict=True)] for s in samples]
    whole = average_precision(task.truth(samples), found)
    assert whole["AP"] == whole["AP50"] == whole["AP_small"] == 1
    assert "AP_large" not in whole
    assert 0 < average_precision(task.truth(samples), [*found[:6], *[[]] * 6])["AP50"] < 1
    assert average_precision(task.truth(samples), [[]] * 12)["AP"] == 0
    assert average_precision({**task.truth(samples), "annotations": []}, found) == {}
