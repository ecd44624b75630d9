"""Pictures and clips with classes, from folders and lists; frames chosen as published; what is wrong is named."""

import json

import pytest
from PIL import Image

from btp.tasks.classes.clips import ClassFolders, Clips, SomethingSomething
from btp.tasks.classes.picture_folder import PictureFolders
from btp.tasks.classes.task import Classes
from btp.tasks.files.clip import chosen


def frames(folder, count=4, size=(12, 8)):
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", size, (i * 10, 0, 0)).save(folder / f"frame_{i}.png")


def reds(sample):
    return [picture.getpixel((0, 0))[0] // 10 for picture in sample.images]


def test_pictures_in_class_folders(tmp_path):
    for name in ("n02", "n01"):
        frames(tmp_path / name, 2)
    task = Classes("mine", PictureFolders(str(tmp_path)))
    assert task.classes == ("n01", "n02")
    assert [task[i].reference for i in range(4)] == ["n01", "n01", "n02", "n02"]
    assert task.chance([task[0], task[1], task[2]]) == {"all": 2 / 3}
    more = Classes("mine", PictureFolders(str(tmp_path)), ["n00", "n01", "n02"])
    assert more.classes == ("n00", "n01", "n02")
    with pytest.raises(
        ValueError, match=r"n02.frame_0.png: the class is 'n02', which is none of the 2 of task.dataset"
    ):
        Classes("mine", PictureFolders(str(tmp_path)), ["n00", "n01"])
    (tmp_path / "n03").mkdir()
    with pytest.raises(ValueError, match=r"n03 holds no picture"):
        Classes("mine", PictureFolders(str(tmp_path)))
    with pytest.raises(
        ValueError, match=r"task.path is .*gone, but there is no folder .*gone. It needs a folder of pictures"
    ):
        PictureFolders(str(tmp_path / "gone"))


@pytest.mark.parametrize(
    ("total", "count", "stride", "found"),
    [
        (16, 4, None, [2, 6, 10, 14]),
        (4, 4, None, [0, 1, 2, 3]),
        (2, 4, None, [0, 0, 1, 1]),
        (1, 3, None, [0, 0, 0]),
        (64, 4, 4, [26, 30, 34, 38]),
        (8, 4, 4, [0, 2, 5, 7]),
        (1, 2, 4, [0, 0]),
    ],
)
def test_frames_are_chosen_inside_the_clip(total, count, stride, found):
    assert chosen(total, count, stride) == found


def test_views_of_a_clip_take_turns_in_time():
    """Dense runs lie from its beginning to its end, uniform ones inside each part; a single one is in the middle."""
    assert chosen(20, 4, 2, 3) == [0, 2, 4, 6, 6, 8, 10, 12, 13, 15, 17, 19]
    assert chosen(16, 4, None, 2) == [1, 5, 9, 13, 3, 7, 11, 15]
    assert chosen(5, 4, 4, 2) == [0, 1, 3, 4] * 2


def test_views_of_a_clip_are_squares_along_its_longer_side(tmp_path):
    folder = tmp_path / "wide"
    folder.mkdir()
    for i in range(4):
        picture = Image.new("RGB", (12, 4), (i * 10, 0, 0))
        for x in range(12):
            picture.putpixel((x, 0), (i * 10, x, 0))
        picture.save(folder / f"{i}.png")
    (tmp_path / "val.csv").write_text("wide 0\n")
    task = Classes("mine", Clips(str(tmp_path), "val.csv", None, 2, None, 2, 3))
    images = task[0].images
    assert task.views == 6
    assert images.sizes() == [(4, 4)] * 12
    found = [(p.size, *p.getpixel((0, 0))[:2]) for p in images]
    runs, firsts = ([0, 20], [10, 30]), (0, 4, 8)
    assert found == [((4, 4), red, x) for run in runs for x in firsts for red in run]
    assert [p.getpixel((0, 0))[1] for p in images[2:4]] == [4, 4]
    with pytest.raises(ValueError, match=r"task.dataset.reader.crops is 0. Write a whole number"):
        Clips(str(tmp_path), "val.csv", None, 2, None, 2, 0)


def test_a_list_of_clips_that_are_folders_of_frames(tmp_path):
    frames(tmp_path / "walk one", 12)
    frames(tmp_path / "run")
    (tmp_path / "val.csv").write_text("walk one 1\nrun,0\n")
    task = Classes("mine", Clips(str(tmp_path), "val.csv", None, 4, None))
    assert task.classes == ("0", "1")
    assert [task[i].reference for i in range(2)] == ["1", "0"]
    assert reds(task[0]) == [1, 4, 7, 10]  # frame_10 comes behind frame_9
    assert task[0].images.sizes() == [(8, 12)] * 4
    named = tmp_path / "names.txt"
    named.write_text("run\nwalk\n")
    with pytest.raises(ValueError, match=r"val.csv, line 1: the class is '1', which is none of the 2 of task.dataset"):
        Classes("mine", Clips(str(tmp_path), "val.csv", None, 4, None), str(named))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("gone 3", r"val.csv, line 1: there is no .*gone"),
        ("alone", r"val.csv, line 1 is 'alone', not a path, a blank and a class"),
    ],
)
def test_a_line_that_names_no_clip(tmp_path, line, message):
    (tmp_path / "val.csv").write_text(line)
    with pytest.raises(ValueError, match=message):
        Classes("mine", Clips(str(tmp_path), "val.csv", None, 4, None))


def test_other_layouts_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"val.csv is missing.*needs there: val.csv with a line `path label`"):
        Classes("mine", Clips(str(tmp_path), "val.csv", None, 4, None))
    with pytest.raises(ValueError, match=r"task.dataset.reader.frames is 0"):
        Clips(str(tmp_path), "val.csv", None, 0, None)
    with pytest.raises(ValueError, match=r"but there is no folder .*val. It needs a folder of clips for each class"):
        ClassFolders(str(tmp_path), "val", 4, 4)
    (tmp_path / "empty").mkdir()
    (tmp_path / "val.csv").write_text("empty 0")
    with pytest.raises(ValueError, match=r"sample empty: .*empty holds no frame"):
        Classes("mine", Clips(str(tmp_path), "val.csv", None, 4, None))


def test_folders_of_clips_by_class(tmp_path):
    frames(tmp_path / "val" / "jump" / "a")
    frames(tmp_path / "val" / "fall" / "b")
    task = Classes("kinetics", ClassFolders(str(tmp_path), "val", 2, 1))
    assert task.classes == ("fall", "jump")
    assert reds(task[0]) == [0, 2] or reds(task[0]) == [1, 2]


def test_something_something(tmp_path):
    frames(tmp_path / "videos" / "12")
    (tmp_path / "labels.json").write_text(json.dumps({"Holding something": "1", "Closing something": "0"}))
    listed = [{"id": "12", "label": "holding a cup", "template": "Holding [something]"}]
    (tmp_path / "validation.json").write_text(json.dumps(listed))
    task = Classes("ssv2", SomethingSomething(str(tmp_path), "validation", "videos", 4, None))
    assert task.classes == ("Closing something", "Holding something")
    assert task[0].reference == "Holding something"
    (tmp_path / "validation.json").write_text(json.dumps([{"id": "13", "template": "Holding [something]"}]))
    with pytest.raises(ValueError, match=r"validation.json, entry 0: there is neither .*13.webm nor a folder"):
        Classes("ssv2", SomethingSomething(str(tmp_path), "validation", "videos", 4, None))
    (tmp_path / "labels.json").write_text(json.dumps({"Holding something": "5"}))
    with pytest.raises(ValueError, match=r"labels.json holds .* neither a list of names nor names with numbers from 0"):
        Classes("ssv2", SomethingSomething(str(tmp_path), "validation", "videos", 4, None))


def test_a_video_without_a_decoder_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"video")
    (tmp_path / "val.csv").write_text("a.mp4 0")
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "av" else find(name))
    with pytest.raises(ValueError, match=r"a.mp4 is a video, and reading videos needs PyAV.*requirements-video.txt"):
        Classes("mine", Clips(str(tmp_path), "val.csv", None, 4, None))


def test_frames_of_a_video(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height = 32, 16
        for i in range(8):
            picture = Image.new("RGB", (32, 16), (i * 30, 0, 0))
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    (tmp_path / "val.csv").write_text("a.mp4 0")
    sample = Classes("mine", Clips(str(tmp_path), "val.csv", None, 4, None))[0]
    assert sample.images.sizes() == [(16, 32)] * 4
    found = [picture.getpixel((5, 5))[0] for picture in sample.images]
    assert found == pytest.approx([30, 90, 150, 210], abs=12)
