"""Video benchmarks in their published layouts, tables of videos, and which frames of a video are shown."""

import importlib.util
import json
from string import ascii_uppercase

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from btp.tasks.files.video_frames import Sampling, footage
from btp.tasks.videos.egoschema import EgoSchema
from btp.tasks.videos.longvideobench import LongVideoBench
from btp.tasks.videos.mlvu import MLVU
from btp.tasks.videos.mvbench import MVBench
from btp.tasks.videos.video_folder import VideoFolder
from btp.tasks.videos.videomme import VideoMME
from btp.tasks.vqa import VQA

FRAMES = {"frames": 4, "fps": 1.0, "folder_fps": 1.0}
CHOICES = ["a cat", "a dog", "a bird", "a fish"]


def folder(path, frames, size=(8, 6)):
    """A video as a folder of frames."""
    path.mkdir(parents=True)
    for i in range(frames):
        Image.new("RGB", size, (i, 0, 0)).save(path / f"frame_{i}.png")


def shown(clip):
    """Red of each frame: its number in the folder."""
    return [frame.getpixel((0, 0))[0] for frame in clip[:]]


@pytest.mark.parametrize(
    ("settings", "total", "rate", "span", "found"),
    [
        ((16, 1.0), 5, 1.0, None, [0, 1, 2, 3, 4]),  # shorter than asked: each frame once
        ((16, 1.0), 1, 1.0, None, [0]),
        ((4, 1.0), 100, 25.0, None, [0, 25, 50, 75]),  # one a second
        ((4, 1.0), 250, 25.0, None, [0, 83, 166, 249]),  # more than four: evenly, both ends
        ((4, None), 10, 1.0, None, [0, 3, 6, 9]),
        ((1, None), 10, 1.0, None, [0]),
        ((8, 2.0), 60, 30.0, None, [0, 15, 30, 45]),
        ((4, 1.0), 100, 10.0, (2.0, 4.0), [20, 30, 40]),  # a part of it
        ((4, 1.0), 100, 10.0, (50.0, 60.0), [99]),  # beyond its end
    ],
)
def test_which_frames(settings, total, rate, span, found):
    """At a rate, evenly where these are too many, and inside a span alone."""
    assert Sampling(*settings, 1.0).chosen(total, rate, span) == found


def test_numbers_that_choose_nothing():
    """Say which key to change."""
    for settings, key in (((0, 1.0, 1.0), "frames"), ((4, 0, 1.0), "fps"), ((4, 1.0, -1), "folder_fps")):
        with pytest.raises(ValueError, match=rf"reader\.{key} is"):
            Sampling(*settings)


def test_a_folder_of_frames(tmp_path):
    """In the order of their numbers, opened a chunk at a time; the size is that of the first."""
    folder(tmp_path / "clip", 12)
    clip = footage("one", tmp_path / "clip", Sampling(5, None, 1.0), "task.path")
    assert shown(clip) == [0, 2, 5, 8, 11]
    assert [len(part) for part in clip.chunks(2)] == [2, 2, 1]
    assert clip.frame_size() == (6, 8)


@pytest.mark.skipif(importlib.util.find_spec("av") is not None, reason="PyAV is installed")
def test_a_video_file_without_a_decoder(tmp_path):
    """Says what to install, or what to save instead."""
    (tmp_path / "clip.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"requirements-video\.txt"):
        footage("one", tmp_path / "clip.mp4", Sampling(5, None, 1.0), "task.path")


@pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="PyAV is not installed")
def test_a_video_file(tmp_path):
    """Frames of a file are those of its numbers, whole or a chunk at a time."""
    import av
    import numpy as np

    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "bgr0"
        for i in range(30):
            picture = np.full((16, 32, 3), 8 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    clip = footage("one", tmp_path / "clip.mkv", Sampling(8, 2.0, 1.0), "task.path")
    numbers = [0, 5, 10, 15, 20, 25]
    assert [round(value / 8) for value in shown(clip)] == numbers
    assert [round(f.getpixel((0, 0))[0] / 8) for part in clip.chunks(4) for f in part] == numbers
    assert clip.frame_size() == (16, 32)
    assert round(clip[2].getpixel((0, 0))[0] / 8) == 10


def write_json(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_mvbench(tmp_path):
    """Kinds are abilities; what has a start and an end is about that part alone."""
    row = {"video": "v", "question": "what?", "candidates": CHOICES[:3], "answer": "a dog"}
    write_json(tmp_path / "json/action_count.json", [row])
    write_json(tmp_path / "json/action_sequence.json", [row | {"start": 3.0, "end": 5.0}])
    folder(tmp_path / "video/perception/videos/v", 9)
    folder(tmp_path / "video/star/Charades_v1_480/v", 9)
    kinds = ["action_count", "action_sequence"]
    count, sequence = MVBench(str(tmp_path), "video", kinds, **FRAMES).read()
    assert (count.ability, count.reference, count.choices) == ("action_count", "B", tuple(CHOICES[:3]))
    assert shown(count.clips[0]) == [0, 2, 5, 8]
    assert shown(sequence.clips[0]) == [3, 4, 5]
    with pytest.raises(ValueError, match="kinds holds"):
        MVBench(str(tmp_path), "video", ["dancing"], **FRAMES).read()


def test_videomme(tmp_path):
    """Letters in front of options go, and accuracy is told by length beside the ability."""
    options = [f"{letter}. {text}" for letter, text in zip(ascii_uppercase, CHOICES, strict=False)]
    row = {"videoID": "xy", "question": "what?", "options": options, "domain": "d", "sub_category": "s"}
    rows = [
        row | {"question_id": "1", "answer": "C", "duration": "short", "task_type": "OCR"},
        row | {"question_id": "2", "answer": "A", "duration": "long", "task_type": "Counting"},
    ]
    write_parquet(tmp_path / "t.parquet", rows)
    folder(tmp_path / "data/xy", 3)
    reader = VideoMME(str(tmp_path), "t.parquet", "data", **FRAMES, ability="task_type")
    task = VQA("videomme", reader, "multiple_choice", 8)
    samples = [task[0], task[1]]
    assert samples[0].choices == tuple(CHOICES)
    assert [s.ability for s in samples] == ["OCR", "Counting"]
    summary = task.summary(samples, ["C", "B"])
    assert summary["accuracy, short"] == 1.0
    assert summary["accuracy, long"] == 0.0
    digest = task.content()
    Image.new("RGB", (9, 9)).save(tmp_path / "data/xy/frame_1.png")
    assert VQA("videomme", reader, "multiple_choice", 8).content() != digest


@pytest.mark.parametrize("form", ["json", "parquet"])
def test_longvideobench(tmp_path, form):
    """As candidates, or in columns of which the last may be empty; the test split has no answers."""
    row = {"id": "q", "video_path": "xy", "question": "what?", "correct_choice": 1, "duration_group": 60}
    row |= {"question_category": "S2E", "topic_category": "t", "level": "L1"}
    if form == "json":
        write_json(tmp_path / "t.json", [row | {"candidates": CHOICES}])
    else:
        named = {f"option{i}": text for i, text in enumerate([*CHOICES, "N/A"])}
        write_parquet(tmp_path / "t.parquet", [row | named])
    folder(tmp_path / "videos/xy", 3)
    (sample,) = LongVideoBench(str(tmp_path), f"t.{form}", "videos", **FRAMES, ability="question_category").read()
    assert (sample.reference, sample.choices, sample.ability) == ("B", tuple(CHOICES), "S2E")
    assert sample.duration == "60"
    with pytest.raises(ValueError, match=r"ability is 'all'\. Choose from: question_category, duration_group"):
        LongVideoBench(str(tmp_path), f"t.{form}", "videos", **FRAMES).read()
    write_json(tmp_path / "none.json", [row | {"candidates": CHOICES, "correct_choice": -1}])
    with pytest.raises(ValueError, match=r"no public answer \(correct_choice -1\)"):
        LongVideoBench(str(tmp_path), "none.json", "videos", **FRAMES, ability="question_category").read()


def test_egoschema(tmp_path):
    """Answers are numbers of options; without one nothing can be scored."""
    row = {"question_idx": "0", "video_idx": "xy", "question": "what?", "option": CHOICES, "answer": "3"}
    write_parquet(tmp_path / "t.parquet", [row])
    folder(tmp_path / "videos/xy", 3)
    (sample,) = EgoSchema(str(tmp_path), "t.parquet", "videos", **FRAMES).read()
    assert (sample.reference, len(sample.clips[0])) == ("D", 3)
    write_parquet(tmp_path / "all.parquet", [row | {"answer": None}, row])
    with pytest.raises(ValueError, match="Subset"):
        EgoSchema(str(tmp_path), "all.parquet", "videos", **FRAMES).read()


def test_mlvu(tmp_path):
    """Seven tasks of multiple choice, by the length of their videos too."""
    row = {"video": "v", "question": "what?", "candidates": CHOICES, "answer": "a fish", "question_type": "needle"}
    write_json(tmp_path / "json/2_needle.json", [row | {"duration": 700}])
    folder(tmp_path / "video/2_needle/v", 2)
    (sample,) = MLVU(str(tmp_path), ["2_needle"], **FRAMES).read()
    assert (sample.reference, sample.ability, sample.duration) == ("D", "needle", "10 to 30 min")


def test_a_table_of_videos(tmp_path):
    """One video, two, a part of one, none; columns by other names."""
    rows = [
        {"vid": "a", "question": "<video>\nwhat?", "answer": "red", "ability": "colour"},
        {"vid": ["a", "b"], "question": "which?", "answer": "a"},
        {"vid": "b", "start": 1, "end": 2, "question": "when?", "answer": "then"},
        {"question": "why?", "answer": "so"},
    ]
    write_json(tmp_path / "t.json", rows)
    folder(tmp_path / "a", 2)
    folder(tmp_path / "b", 6)
    samples = VideoFolder(str(tmp_path / "t.json"), **FRAMES, columns={"video": "vid"}).read()
    assert [len(s.clips) for s in samples] == [1, 2, 1, 0]
    assert samples[0].question == "what?"
    assert shown(samples[1].clips[1]) == [0, 1, 3, 5]
    assert shown(samples[2].clips[0]) == [1, 2]
