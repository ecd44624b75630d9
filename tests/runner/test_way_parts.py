"""What ways of answering are made of: names of classes, frames that stay, batches of one size, who may answer what."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from btp.core.pruner import Tokens
from btp.core.schedule import Stage
from btp.core.signals import Signals
from btp.models.token_layout import strip_of
from btp.pruners.fewer_frames import FewerFrames
from btp.runner.evaluation.data import Batch, Feed
from btp.runner.evaluation.ways.detect import Detect
from btp.runner.evaluation.ways.generate import HUES, event_band
from btp.runner.evaluation.ways.label_names import categories_of, names_of
from btp.runner.evaluation.ways.way_of_task import way_of
from btp.tasks.pocketboxes.classify import PocketDigits
from btp.tasks.pocketboxes.task import PocketBoxes
from btp.tasks.sample import Sample


def task(classes=(), names=(), aliases=None):
    return SimpleNamespace(name="mine", classes=classes, names=names, aliases=aliases or {})


def test_classes_are_found_by_name_or_by_order():
    assert names_of({0: "dog", 1: "cat", 2: "cow"}, task(["cat", "dog"])) == {0: "dog", 1: "cat", 2: "cow"}
    assert names_of({0: "tench", 1: "shark"}, task(["n01", "n02"])) == {0: "n01", 1: "n02"}
    assert names_of({0: "a", 1: "b", 2: "c"}, task(["0", "1"])) == {0: "0", 1: "1", 2: "2"}
    with pytest.raises(ValueError, match=r"task=mine has 2 classes, but the model tells 3 apart and knows no 'n01'"):
        names_of({0: "a", 1: "b", 2: "c"}, task(["n01", "n02"]))


def test_objects_are_found_by_name_whatever_else_a_detector_finds():
    labels = {0: "N/A", 1: "person", 5: "airplane"}
    assert categories_of(labels, task(names=["aeroplane"], aliases={"aeroplane": ("airplane",)})) == {5: "aeroplane"}
    assert categories_of({0: "LABEL_0", 1: "LABEL_1"}, task(names=["box", "ring"])) == {0: "box", 1: "ring"}
    with pytest.raises(ValueError, match=r"task=mine asks for box, but the model finds none of them: it knows N/A"):
        categories_of(labels, task(names=["box"]))


@pytest.mark.parametrize(("keep", "found"), [(8, {1, 3}), (4, {2}), (6, {1, 3}), (16, {0, 1, 2, 3})])
def test_whole_frames_stay_evenly_in_time(keep, found):
    frames = torch.arange(4).repeat_interleave(4)
    coord = torch.stack([frames, torch.arange(16) // 2 % 2, torch.arange(16) % 2], 1)[None]
    one = torch.ones(1, 16, dtype=torch.long)
    tokens = Tokens(
        hidden=torch.zeros(1, 16, 2),
        position=torch.arange(16)[None],
        coord=coord,
        image=one * 0,
        size=one,
        valid=one.bool(),
        total=torch.tensor([16]),
        index=torch.arange(16)[None],
    )
    kept = FewerFrames().select(tokens, Signals({}), Stage("vision.layer.0", keep)).keep[0]
    assert len(kept) == keep
    assert set(frames[kept].tolist()) == found


def test_a_batch_has_samples_of_one_size():
    class Plain:
        def __init__(self, processor):
            pass

        def __call__(self, samples, indices=(), shares=()):
            return Batch({}, samples, indices=indices)

    samples = [Sample(str(i), (), "", "", "all") for i in range(6)]
    with Feed(samples, None, collate=Plain, groups=["a", "a", "b", "b", "b", "a"]) as feed:
        assert [list(batch.indices) for batch in feed.batches(range(6), 2)] == [[0, 1], [2, 3], [4], [5]]


def test_a_model_that_answers_otherwise_is_refused():
    way = way_of(PocketDigits("test", 0, 3))
    assert way.name == "classify"
    with pytest.raises(ValueError, match="task=pocketdigits needs a model that names classes, but the one of model"):
        way.check(SimpleNamespace(host=SimpleNamespace()), [])
    with pytest.raises(ValueError, match="finds objects"):
        way.check(SimpleNamespace(host=SimpleNamespace(read="detect")), [])
    with pytest.raises(ValueError, match=r"SimpleNamespace.way is 'sing'. Choose from: generate, classify, detect"):
        way_of(SimpleNamespace(way="sing"))


def test_answers_in_boxes_are_scored_compared_and_marked():
    boxes = PocketBoxes("test", 0, 2)
    way, sample = Detect(boxes), boxes[0]
    right = [[name, 0.9, *box] for name, box in zip(sample.labels, sample.boxes, strict=True)]
    unsure = [[*box[:1], 0.4, *box[2:]] for box in right]
    rows = {"boxes": right}
    assert way.scores([sample], {sample.id: rows}) == [1]
    assert way.summary([sample], {sample.id: rows})["AP50"] == 1
    assert way.agrees(rows, rows) == 1
    assert way.agrees({"boxes": right[:-1] + unsure[-1:]}, rows) < 1
    assert way.agrees({"boxes": unsure}, {"boxes": []}) == 1  # neither is sure of any
    marks = way.marks([sample], {sample.id: {"boxes": right[1:]}})
    assert [mark["kind"] for mark in marks] == ["matched"] * (len(right) - 1) + ["missed"]


def test_a_strip_has_its_boxes_in_its_first_frame():
    coord = torch.cartesian_prod(torch.arange(5), torch.arange(2), torch.arange(3))
    visual = torch.ones(1, 30, dtype=torch.bool)
    layout = SimpleNamespace(coord=coord[None], visual=visual, image=torch.zeros(1, 30, dtype=torch.long))
    picture, places = strip_of([Image.new("RGB", (30, 20))] * 5, layout, [(0, 0, 1, 0.5)])
    assert picture.size == (120, 40)  # four frames, then one
    assert places["grid"] == [4, 12]
    assert places["boxes"] == [[0, 0, 0.25, 0.25]]
    assert sorted(n for n in places["views"][0]["tokens"] if n >= 0) == list(range(30))


def test_a_strip_of_a_prompts_video_has_its_events_below():
    """Tokens of a picture in front, and the newline behind, are not on it; each frame has its colour below."""
    coord = torch.cat([torch.zeros(4, 3).long(), torch.cartesian_prod(*[torch.arange(2)] * 3), torch.full((1, 3), -1)])
    image = torch.tensor([0] * 4 + [1] * 9)
    layout = SimpleNamespace(coord=coord[None], visual=torch.ones(1, 13, dtype=torch.bool), image=image[None])
    events = [
        {"video": 0, "first": 0, "end": 1, "key": True, "key_frames": [0]},
        {"video": 0, "first": 1, "end": 2, "key": False, "key_frames": []},
        {"video": 1, "first": 0, "end": 2, "key": True, "key_frames": [0]},
    ]
    band = event_band(events, 2)
    assert band[0] == HUES[0]
    assert min(band[1]) > max(band[0][:2])  # pale: it matters little
    assert event_band([], 2) == []
    picture, places = strip_of([Image.new("RGB", (20, 20))] * 2, layout, image=1, band=band)
    assert picture.size == (40, 30)  # a token's height below
    assert picture.getpixel((5, 25)) == band[0]
    assert picture.getpixel((25, 25)) == band[1]
    assert places["views"][0]["tokens"] == [4, 5, 8, 9, 6, 7, 10, 11, -1, -1, -1, -1]
