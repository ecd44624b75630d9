"""Clips of things that move: deterministic, balanced, decided by the red thing, and no split shares anything."""

import hashlib

import numpy as np
import pytest

from btp.tasks.pocketmoves.scene import CLASSES, FRAMES, MOVES, SHAPES, SIDE
from btp.tasks.pocketmoves.task import PocketMoves
from btp.tasks.pocketvqa.digits import SPLITS
from btp.tasks.pocketvqa.layout import COLORS


@pytest.fixture(scope="module")
def clips():
    """Two clips of each class with their ground truth."""
    task = PocketMoves("train", 0, 2 * len(CLASSES))
    return [task.clip(i) for i in range(len(task))]


def test_a_clip_is_the_same_whenever_it_is_drawn():
    one, two = PocketMoves("test", 0, 30).clip(17), PocketMoves("test", 0, 300).clip(17)
    assert np.array_equal(one.frames, two.frames)
    assert not np.array_equal(PocketMoves("test", 1, 30).clip(17).frames, one.frames)


def test_splits_share_no_clip():
    drawn = {
        hashlib.sha256(PocketMoves(split, 0, 20).clip(i).frames.tobytes()).hexdigest()
        for split in SPLITS
        for i in range(20)
    }
    assert len(drawn) == 20 * len(SPLITS)


def test_every_class_comes_equally_often():
    task = PocketMoves("test", 0, 3 * len(CLASSES))
    samples = [task[i] for i in range(len(task))]
    references = [s.reference for s in samples]
    assert {references.count(name) for name in CLASSES} == {3}
    assert task.chance(samples) == dict.fromkeys(MOVES, 1 / 24)
    assert len(CLASSES) == len(MOVES) * len(SHAPES) == 24


def test_one_thing_is_red_and_decides_the_class(clips):
    for clip in clips:
        assert [m.color for m in clip.movers].count("red") == 1
        actor = clip.movers[-1]
        assert f"{actor.name} {actor.move}" == CLASSES[clip.label]
        assert 3 <= len(clip.movers) <= 5


def test_the_boxes_of_the_red_thing_hold_it_in_every_frame(clips):
    for clip in clips:
        assert clip.frames.shape == (FRAMES, SIDE, SIDE, 3)
        assert clip.boxes.min() >= 0
        assert clip.boxes.max() <= SIDE
        for frame, (x0, y0, x1, y1) in zip(clip.frames.astype(float), clip.boxes[-1], strict=True):
            near = np.abs(frame - COLORS["red"]).max(-1) < 45
            middle = near[(y0 + y1) // 2 - 1 : (y0 + y1) // 2 + 1, (x0 + x1) // 2 - 1 : (x0 + x1) // 2 + 1]
            assert middle.all()
            near[y0:y1, x0:x1] = False
            assert not near.any()


def test_motions_are_what_they_are_called(clips):
    for clip in clips:
        boxes = clip.movers[-1].boxes
        way = boxes[-1, :2] - boxes[0, :2]
        steps = np.diff(boxes[:, :2] - boxes[:, :2].mean(0), axis=0)
        arms = (boxes[:, :2] - boxes[:, :2].mean(0))[:-1]
        turn = (arms[:, 0] * steps[:, 1] - arms[:, 1] * steps[:, 0]).sum()  # rows grow downwards
        move = clip.movers[-1].move
        if "clockwise" in move:
            assert (turn > 100) == (move == "clockwise")
            assert (turn < -100) == (move == "counterclockwise")
        else:
            axis = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[move]
            assert 13 <= way @ np.array(axis) <= 29
            assert abs(way @ np.array(axis[::-1])) < 6


@pytest.mark.long
def test_one_frame_does_not_tell_the_motion(clips):
    """The red thing's first place says little: no motion claims a part of the picture of its own."""
    task = PocketMoves("train", 1, 20 * len(CLASSES))
    first = {move: [] for move in MOVES}
    for i in range(len(task)):
        mover = task.clip(i).movers[-1]
        first[mover.move].append(mover.boxes[FRAMES // 2, :2])
    centres = {move: np.mean(places, 0) for move, places in first.items()}
    assert all(np.abs(centre - centres["left"]).max() < 6 for centre in centres.values())


def test_a_sample_shows_the_frames_in_order():
    task = PocketMoves("validation", 3, 5)
    sample, clip = task[4], task.clip(4)
    assert np.array_equal(np.stack([np.asarray(image) for image in sample.images]), clip.frames)
    assert sample.reference == CLASSES[4]
    assert sample.targets == (sample.boxes[-1],) == (tuple(clip.boxes[-1, 0] / SIDE),)
    assert sample.labels[-1] == "red circle"
    assert task.score(sample, CLASSES[4]) == 1
    assert task.score(sample, CLASSES[3]) == 0


@pytest.mark.parametrize(
    ("change", "message"), [({"split": "tset"}, "task.split is 'tset'"), ({"size": 0}, "no samples")]
)
def test_bad_settings_say_which_key(change, message):
    with pytest.raises(ValueError, match=message):
        PocketMoves(**({"split": "test", "seed": 0, "size": 9} | change))
