"""Things on clutter: deterministic, boxes and masks right by construction, and no split shares anything."""

import contextlib
import hashlib
import io
from collections import Counter

import numpy as np
import pytest

from btp.tasks.pocketboxes.classify import CONTRAST, PocketDigits
from btp.tasks.pocketboxes.scene import LARGEST, NAMES, SIDE
from btp.tasks.pocketboxes.task import PocketBoxes, box_of, draw_scene, foreground
from btp.tasks.pocketvqa.digits import SPLITS

BOTH = pytest.mark.parametrize("kind", [PocketBoxes, PocketDigits])


@pytest.fixture(scope="module")
def scenes():
    """Pictures with their ground truth."""
    task = PocketBoxes("train", 0, 400)
    return [task.scene(i) for i in range(len(task))]


@BOTH
def test_a_picture_is_the_same_whenever_it_is_drawn(kind):
    one, two = kind("test", 0, 30).scene(17), kind("test", 0, 300).scene(17)
    assert np.array_equal(one.picture, two.picture)
    assert np.array_equal(one.masks, two.masks)
    assert not np.array_equal(kind("test", 1, 30).scene(17).picture, one.picture)


@pytest.mark.long
@BOTH
def test_splits_share_no_picture(kind):
    drawn = {
        hashlib.sha256(kind(split, 0, 40).scene(i).picture.tobytes()).hexdigest() for split in SPLITS for i in range(40)
    }
    assert len(drawn) == 40 * len(SPLITS)


@pytest.mark.long
def test_a_quarter_of_the_patches_is_foreground(scenes):
    shares = np.array([(foreground(s.masks, 8) > 0).mean() for s in scenes])
    assert 0.23 <= shares.mean() <= 0.27
    assert shares.max() < 0.6


def test_every_kind_comes_about_equally_often(scenes):
    seen = Counter(label for s in scenes for label in s.labels)
    assert set(seen) == set(range(len(NAMES)))
    assert max(seen.values()) < 1.35 * min(seen.values())
    assert {len(s.targets) for s in scenes} == {1, 2, 3, 4}


def test_boxes_are_the_smallest_around_their_masks(scenes):
    for scene in scenes[:100]:
        assert (scene.masks.sum(0) <= 1).all()
        for (x0, y0, x1, y1), mask, target in zip(scene.boxes, scene.masks, scene.targets, strict=True):
            assert mask[y0:y1, x0:x1].sum() == mask.sum() > 0
            assert mask[y0].any()
            assert mask[y1 - 1].any()
            assert mask[:, x0].any()
            assert mask[:, x1 - 1].any()
            assert target.x <= x0 < x1 <= target.x + target.side
            assert target.y <= y0 < y1 <= target.y + target.side
            assert max(x1 - x0, y1 - y0) <= LARGEST


def test_the_share_of_a_patch_that_is_covered():
    masks = np.zeros((2, 16, 24), bool)
    masks[0, 4:8, 2:10] = True  # six columns of the first patch, two of the second
    masks[1, 15, 23] = True
    assert np.allclose(foreground(masks, 8), [[24 / 64, 8 / 64, 0], [0, 0, 1 / 64]])
    assert box_of(masks[0]).tolist() == [2, 4, 10, 8]


def test_things_stand_out_by_their_colour_and_clutter_too(scenes):
    """Colour alone does not tell foreground: the clutter is as colourful."""
    inside, outside = [], []
    for scene in scenes[:100]:
        colourful = np.ptp(scene.picture.astype(int), axis=-1) > 90
        inside.append(colourful[scene.masks.any(0)].mean())
        outside.append(colourful[~scene.masks.any(0)].sum() / max(scene.masks.sum(), 1))
    assert 0.5 < np.mean(inside) < 0.95
    assert np.mean(outside) > 0.5


def test_less_clutter_is_the_same_scene_on_a_quieter_ground():
    def outside(clutter):
        scenes = [draw_scene(np.random.default_rng(i), "train", clutter) for i in range(40)]
        colourful = [(np.ptp(s.picture.astype(int), axis=-1) > 90)[~s.masks.any(0)].mean() for s in scenes]
        return np.mean(colourful), [s.targets for s in scenes]

    shares, targets = zip(*(outside(clutter) for clutter in (0.0, 0.3, 1.0)), strict=True)
    assert shares[0] < shares[1] < shares[2]
    assert shares[0] < 0.02
    assert targets[0] == targets[1] == targets[2]


def test_coco_scores_the_truth_as_perfect_and_shifted_boxes_as_worse():
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    task = PocketBoxes("test", 0, 40)
    truth = task.coco(range(40))

    def average_precision(shift):
        found = [
            {key: a[key] for key in ("image_id", "category_id")}
            | {"bbox": [a["bbox"][0] + shift, *a["bbox"][1:]], "score": 1.0}
            for a in truth["annotations"]
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            known = coco.COCO()
            known.dataset = truth
            known.createIndex()
            run = evaluation.COCOeval(known, known.loadRes(found), "bbox")
            run.evaluate()
            run.accumulate()
            run.summarize()
        return run.stats[:2]

    assert average_precision(0).tolist() == [1, 1]
    assert average_precision(2)[0] < 0.9


def test_a_sample_of_boxes_says_what_is_there():
    task = PocketBoxes("validation", 0, 3)
    sample, scene = task[2], task.scene(2)
    assert np.array_equal(np.asarray(sample.images[0]), scene.picture)
    assert np.allclose(np.array(sample.boxes) * SIDE, scene.boxes)
    assert sample.reference.split(" , ") == list(sample.labels) == [NAMES[i] for i in scene.labels]
    assert sample.targets == sample.boxes


def test_digits_are_balanced_in_both_abilities():
    task = PocketDigits("test", 0, 60)
    samples = [task[i] for i in range(60)]
    assert set(Counter((s.ability, s.reference) for s in samples).values()) == {3}
    assert task.chance(samples) == dict.fromkeys(CONTRAST, 0.1)
    assert task.score(samples[7], "7") == 1
    assert task.score(samples[7], "1") == 0


def test_a_digit_is_20_to_28_pixels_high_and_its_box_holds_it():
    task = PocketDigits("train", 0, 80)
    for i in range(80):
        scene = task.scene(i)
        assert scene.picture.shape == (64, 64, 3)
        assert scene.targets[0].digit == i % 10
        assert 20 <= scene.targets[0].side <= 28
        low, high = CONTRAST[task[i].ability]
        assert low <= scene.targets[0].contrast <= high
        x0, y0, x1, y1 = np.array(task[i].boxes[0]) * 64
        assert scene.masks[0, round(y0) : round(y1), round(x0) : round(x1)].sum() == scene.masks.sum()


@BOTH
@pytest.mark.parametrize(
    ("change", "message"), [({"split": "tset"}, "task.split is 'tset'"), ({"size": 0}, "no samples")]
)
def test_bad_settings_say_which_key(kind, change, message):
    with pytest.raises(ValueError, match=message):
        kind(**({"split": "test", "seed": 0, "size": 9} | change))
