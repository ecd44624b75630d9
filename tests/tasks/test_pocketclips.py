"""Clips of events: deterministic, decided by their frames, with evidence where the answer is; splits share nothing."""

import hashlib

import numpy as np
import pytest

from btp.tasks.drawn import SPLITS
from btp.tasks.pocketclips.questions import ABILITIES, words
from btp.tasks.pocketclips.scene import BAND, FEWEST, FRAMES, MOST, MOVES, SIDE, STILL
from btp.tasks.pocketclips.task import PocketClips
from btp.tasks.pocketvqa.layout import COLORS

COUNT = 4 * len(ABILITIES)


@pytest.fixture(scope="module")
def scenes():
    """Four clips of each ability with their ground truth."""
    task = PocketClips("train", 0, COUNT)
    return [task.scene(i) for i in range(COUNT)]


def test_a_clip_is_the_same_whenever_it_is_drawn():
    one, two = PocketClips("test", 0, 30).scene(17), PocketClips("test", 0, 300).scene(17)
    assert np.array_equal(one.frames, two.frames)
    assert (one.question, one.answer) == (two.question, two.answer)
    assert not np.array_equal(PocketClips("test", 1, 30).scene(17).frames, one.frames)


def test_splits_share_no_clip():
    drawn = {
        hashlib.sha256(PocketClips(split, 0, 10).scene(i).frames.tobytes()).hexdigest()
        for split in SPLITS
        for i in range(10)
    }
    assert len(drawn) == 10 * len(SPLITS)


def test_events_cover_all_frames_and_no_two_show_the_same(scenes):
    for scene in scenes:
        assert FEWEST <= len(scene.events) <= MOST
        assert [e.first for e in scene.events] + [FRAMES] == [0] + [e.end for e in scene.events]
        assert len({e.phrase for e in scene.events}) == len(scene.events)
        needles = [e for e in scene.events if e.sign is not None and e.end - e.first <= 2]
        assert needles


def test_things_lie_where_the_truth_says_and_move_as_it_says(scenes):
    for scene in scenes:
        for event in scene.events:
            assert event.boxes.min() >= 0
            assert event.boxes.max() <= SIDE
            if event.sign is not None:  # the thing keeps out of the sign's band
                top = event.sign.box[1] < SIDE // 2
                assert (event.boxes[:, 1] >= BAND).all() if top else (event.boxes[:, 3] <= SIDE - BAND).all()
            x, y = (event.boxes[-1] - event.boxes[0])[:2]
            way = {"left": x < 0 == y, "right": x > 0 == y, "up": y < 0 == x, "down": y > 0 == x, STILL: x == y == 0}
            assert way[event.move]
            frame, box = scene.frames[event.first].astype(float), event.boxes[0]
            near = np.abs(frame - COLORS[event.color]).max(-1) < 50
            assert near[box[1] : box[3], box[0] : box[2]].mean() > 0.1


def test_signs_stand_still(scenes):
    for event in (e for scene in scenes for e in scene.events if e.sign is not None):
        x0, y0, x1, y1 = event.sign.box
        assert 0 <= x0 < x1 <= SIDE
        assert 0 <= y0 < y1 <= SIDE
        assert len(event.sign.name) in (1, 2)


def test_evidence_is_the_frames_of_the_events_asked_about(scenes):
    task = PocketClips("train", 0, COUNT)
    for i, scene in enumerate(scenes):
        sample = task[i]
        assert len(sample.clips[0]) == FRAMES
        assert sample.evidence == tuple(f for event in scene.concerned for f in event.frames)
        if sample.ability in ("digit", "number"):
            (event,) = scene.concerned
            assert event.sign is not None
            assert event.sign.name == sample.reference
        if sample.ability == "motion":
            assert sample.reference in (*MOVES, STILL)


def test_every_word_is_known_and_answers_score(scenes):
    known, task = {*words()}, PocketClips("train", 0, COUNT)
    for i in range(COUNT):
        sample = task[i]
        assert {*sample.question.split()} <= known
        assert task.score(sample, sample.reference) == 1.0
        assert task.score(sample, "nothing") == 0.0
    chance = task.chance([task[i] for i in range(COUNT)])
    assert all(0 < value <= 1 for value in chance.values())
    assert set(chance) == set(ABILITIES)


def test_abilities_can_be_chosen():
    task = PocketClips("test", 0, 4, ["number"])
    assert {task[i].ability for i in range(4)} == {"number"}
    with pytest.raises(ValueError, match=r"task\.abilities holds"):
        PocketClips("test", 0, 4, ["smell"])
