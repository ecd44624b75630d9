"""The embedded task: deterministic, balanced, answerable, and no split shares anything with another."""

import hashlib
from collections import Counter

import numpy as np
import pytest

from btp.tasks.pocketvqa.digits import SPLITS, digit_images
from btp.tasks.pocketvqa.layout import Thing, draw_layout
from btp.tasks.pocketvqa.questions import ABILITIES, ask, words
from btp.tasks.pocketvqa.task import PocketVQA
from btp.tasks.scoring import exact_match, list_f1


def thing(name, color, row, col, cols=1):
    """A small object in a cell."""
    return Thing(name, color, row, col, 1, cols, (col / 3, row / 3, (col + cols) / 3, (row + 1) / 3))


SCENE = [
    thing("circle", "red", 0, 0),
    thing("7", "blue", 0, 1),
    thing("cross", "blue", 1, 0),
    thing("42", "cyan", 1, 1, 2),
]


def every(ability, scene=SCENE, draws=200):
    """All questions that an ability asks of a scene."""
    found = (ask(ability, scene, np.random.default_rng(i)) for i in range(draws))
    return {q[0]: (q[1], {t.phrase for t in q[2]}) for q in found if q}


def test_a_sample_is_the_same_whenever_it_is_drawn():
    one, two = PocketVQA("test", 0, 50)[17], PocketVQA("test", 0, 500)[17]
    assert one.question == two.question
    assert one.images[0].tobytes() == two.images[0].tobytes()
    assert PocketVQA("test", 1, 50)[17].images[0].tobytes() != one.images[0].tobytes()


def test_splits_share_no_digit_image():
    seen = {}
    for split in SPLITS:
        for digit, images in digit_images(split).items():
            assert len(images) >= 10
            for image in images:
                key = (digit, image.tobytes())
                assert seen.setdefault(key, split) == split


def test_splits_share_no_scene():
    hashes = {}
    for split in SPLITS:
        task = PocketVQA(split, 0, 60)
        hashes[split] = {hashlib.sha256(task[i].images[0].tobytes()).hexdigest() for i in range(60)}
        assert len(hashes[split]) == 60
    assert len(set().union(*hashes.values())) == 60 * len(SPLITS)


def test_objects_cover_what_the_card_says_and_never_touch():
    rng = np.random.default_rng(0)
    for _ in range(500):
        things = draw_layout(rng)
        assert 3 <= len(things) <= 8
        for t in things:
            x0, y0, x1, y1 = t.box
            assert 0 <= x0 < x1 <= 1
            assert 0 <= y0 < y1 <= 1
            assert 0.03 <= (x1 - x0) * (y1 - y0) <= 0.40
            for other in things:
                apart = (
                    other is t or x1 <= other.box[0] or other.box[2] <= x0 or y1 <= other.box[1] or other.box[3] <= y0
                )
                assert apart


def test_questions_and_answers_are_right():
    assert every("relation")["what is right of the red circle ?"] == ("blue 7", {"red circle", "blue 7"})
    assert every("relation")["what is below the red circle ?"] == ("blue cross", {"red circle", "blue cross"})
    assert every("same_as")["which digit has the color of the cross ?"] == ("7", {"blue cross", "blue 7"})
    assert every("same_as")["which shape has the color of the 7 ?"] == ("cross", {"blue cross", "blue 7"})
    assert every("number")["what number is in the row of the cross ?"] == ("42", {"blue cross", "cyan 42"})
    assert every("digit") == {"which digit is blue ?": ("7", {"blue 7"})}
    assert every("position")["where is the blue cross ?"] == ("middle left", {"blue cross"})
    assert every("attribute")["what color is the 7 ?"] == ("blue", {"blue 7"})
    everything = {t.phrase for t in SCENE}
    assert every("counting")["how many blue things are there ?"] == ("2", everything)
    assert every("counting")["how many star things are there ?"] == ("0", everything)
    assert every("presence")["is there a red circle ?"][0] == "yes"
    assert every("presence")["is there a red cross ?"][0] == "no"
    assert ask("describe", SCENE, np.random.default_rng(0))[1] == "red circle , blue 7 , blue cross , cyan 42"


def test_a_question_without_one_right_answer_is_not_asked():
    twins = [
        thing("circle", "red", 0, 0),
        thing("circle", "red", 0, 1),
        thing("7", "red", 1, 0),
        thing("3", "red", 1, 2),
    ]
    assert every("digit", twins) == {}
    assert not any("circle" in q for q in every("position", twins))
    assert not any("of the circle" in q for q in every("same_as", twins))


def test_presence_is_a_coin():
    answers = Counter(ask("presence", SCENE, np.random.default_rng(i))[1] for i in range(2000))
    assert abs(answers["yes"] / 2000 - 0.5) < 0.04


def test_chance_is_the_commonest_answer_of_each_form():
    task = PocketVQA("test", 0, 360)
    samples = [task[i] for i in range(360)]
    chance = task.chance(samples)
    assert set(chance) == set(ABILITIES)
    assert 0.5 <= chance["presence"] < 0.65
    assert chance["relation"] < 0.25


def test_every_word_is_in_the_vocabulary():
    task, known = PocketVQA("validation", 3, 300), set(words())
    for i in range(300):
        sample = task[i]
        said = sample.question.split() + [c for w in sample.reference.split() for c in (w if w.isdigit() else [w])]
        asked = [c for w in said for c in (w if w.isdigit() else [w])]
        assert set(asked) <= known


def test_scoring():
    assert exact_match(" Top  left. ", "top left") == 1
    assert exact_match("4 2", "42") == 1
    assert exact_match("42", "24") == 0
    assert list_f1("red circle , blue 7", "red circle , blue 7 , red star") == pytest.approx(0.8)
    assert list_f1("red circle, red circle", "red circle") == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "tset"}, "task.split is 'tset'"),
        ({"size": 0}, "no samples"),
        ({"abilities": ["reading"]}, "task.abilities holds"),
    ],
)
def test_bad_settings_say_which_key(change, message):
    with pytest.raises(ValueError, match=message):
        PocketVQA(**({"split": "test", "seed": 0, "size": 9} | change))


@pytest.mark.long
def test_an_earlier_question():
    """Of another ability about the same scene, the same for an index; the sample itself is as without it."""
    plain, two = (PocketVQA("test", 0, 200, earlier=asked) for asked in (False, True))
    for i in range(40, 200, 2):
        a, b = plain[i], two[i]
        assert (a.question, a.reference, a.boxes, a.earlier) == (b.question, b.reference, b.boxes, "")
        assert a.images[0].tobytes() == b.images[0].tobytes()
        assert b.earlier not in ("", b.question)
        assert two[i].earlier == b.earlier
