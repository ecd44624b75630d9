"""Calibration sets: drawn by seed, on record, and another set where a picture has changed."""

import json
import re

import pytest
from jobs import composed
from PIL import Image

from btp.runner.datasets import make_dataset, with_contents


@pytest.fixture
def pictures(tmp_path):
    """Thirty pictures, one in a folder of its own, beside a text."""
    for i in range(30):
        folder = tmp_path / ("deep" if i == 7 else "")
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (10, 6), (8 * i, 0, 0)).save(folder / f"p{i:02d}.{'PNG' if i == 3 else 'jpg'}")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "._p00.jpg").write_text("what a system keeps beside a picture")
    (tmp_path / "album.png").mkdir()
    return tmp_path


@pytest.fixture
def conversations(tmp_path, pictures):
    """LLaVA-Instruct's format: repeated ids, several turns, one conversation without a picture."""
    (tmp_path / "train2017").mkdir()
    entries = [{"id": "text", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}]
    for i in range(20):
        Image.new("RGB", (10, 6), (8 * i, 0, 0)).save(tmp_path / "train2017" / f"{i:012d}.jpg")
        turns = [("human", f"<image>\nWhat is {i}?"), ("gpt", f"It is {i}."), ("human", "Why?"), ("gpt", "So.")]
        listed = [{"from": who, "value": text} for who, text in turns]
        entries.append({"id": f"{i // 2:012d}", "image": f"{i:012d}.jpg", "conversations": listed})
    (tmp_path / "llava_instruct_150k.json").write_text(json.dumps(entries))
    return tmp_path


def config(name, path, *overrides):
    """A config that calibrates on it."""
    return composed(f"calibration={name}", f"calibration.path={path}", "calibration.samples=8", *overrides)


def test_a_folder_is_drawn_by_seed(pictures):
    one, same, other = (
        make_dataset(config("folder", pictures, f"calibration.dataset.seed={seed}")["calibration"]["dataset"])
        for seed in (0, 0, 1)
    )
    ids = [[s.id for s in found] for found in (one, same, other)]
    assert ids[0] == ids[1] != ids[2]
    assert len(set(ids[0])) == 8
    assert one[0].question == "Describe this picture in detail."
    assert all(s.images[0].size == (10, 6) for s in one)
    every = make_dataset(config("folder", pictures, "calibration.samples=30")["calibration"]["dataset"])
    assert {"deep-p07.jpg", "p03.PNG"} < {s.id for s in every}


def test_llava_instruct_asks_the_first_question(conversations):
    found = list(make_dataset(config("llava_instruct", conversations)["calibration"]["dataset"]))
    assert len({s.id for s in found}) == 8
    for sample in found:
        number = int(sample.id.split("-")[0]) - 1  # the first entry has no picture
        assert sample.question == f"What is {number}?"
        assert sample.reference == f"It is {number}."
        assert abs(sample.images[0].getpixel((5, 3))[0] - 8 * number) < 4


@pytest.mark.long
@pytest.mark.parametrize("name", ["folder", "llava_instruct"])
def test_the_draw_is_on_record_and_follows_the_pictures(name, conversations):
    asked = config(name, conversations)
    found = with_contents(asked)["calibration"]["content"]
    assert found["drawn"] == [s.id for s in make_dataset(asked["calibration"]["dataset"])]
    assert with_contents(asked)["calibration"]["content"] == found
    assert with_contents(config(name, conversations, "calibration.dataset.seed=1"))["calibration"]["content"] != found
    source = make_dataset(asked["calibration"]["dataset"])[0].images.sources[0]
    before = source.path.read_bytes()
    source.path.write_bytes(before[:-3] + bytes([before[-3] ^ 1]) + before[-2:])  # one bit, the same size
    changed = with_contents(asked)["calibration"]["content"]
    assert changed["drawn"] == found["drawn"]
    assert changed["digest"] != found["digest"]
    assert "content" not in with_contents(config(name, conversations, "model.weights=random"))["calibration"]


def cut(path):
    """A picture whose copy ended early: its head says the size."""
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:-700])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(lambda path: path.write_text("no picture"), "no picture format is known for it"), (cut, "truncated")],
)
def test_a_broken_picture_is_named_before_a_model_is_loaded(spoil, reason, pictures):
    asked = config("folder", pictures, "calibration.samples=30")
    spoil(pictures / "p20.jpg")
    with pytest.raises(ValueError, match=rf"sample p20.jpg: the picture \S*/p20.jpg cannot be read: .*{reason}"):
        with_contents(asked)


def test_only_pictures_count(pictures):
    with pytest.raises(ValueError, match=r"calibration\.samples is 31, but calibration\.path holds 30 samples"):
        with_contents(config("folder", pictures, "calibration.samples=31"))


@pytest.mark.long
def test_what_is_missing_is_said(conversations, tmp_path):
    def refused(name, message, *overrides):
        with pytest.raises(ValueError, match=re.escape(message)):
            with_contents(config(name, conversations, *overrides))

    refused("folder", "calibration.path is nowhere, but there is no such folder", "calibration.path=nowhere")
    (tmp_path / "empty").mkdir()
    refused("folder", "which holds no picture (.bmp, .gif", f"calibration.path={tmp_path / 'empty'}")
    refused("folder", "calibration.samples is 99, but calibration.path holds 50", "calibration.samples=99")
    refused("llava_instruct", "but there is no folder nowhere. LLaVA-Instruct needs there", "calibration.path=nowhere")
    refused("llava_instruct", "calibration.samples is 21, but calibration.path holds 20", "calibration.samples=21")
    (tmp_path / "llava_instruct_150k.json").rename(tmp_path / "llava_v1_5_mix665k.json")
    refused(
        "llava_instruct",
        "there are llava_v1_5_mix665k.json (calibration.dataset.reader.conversations chooses)",
    )
    (tmp_path / "llava_v1_5_mix665k.json").rename(tmp_path / "llava_instruct_150k.json")
    for path in (tmp_path / "train2017").iterdir():
        path.unlink()
    refused("llava_instruct", "is missing. Put it there, or correct calibration.path")
