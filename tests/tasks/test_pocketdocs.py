"""The embedded text task: deterministic, answerable, evidence known, and no split shares anything with another."""

from collections import Counter

import numpy as np
import pytest

from btp.tasks.pocketdocs.questions import ABILITIES, ask
from btp.tasks.pocketdocs.task import RESERVED, PocketDocs, tokens_of
from btp.tasks.pocketdocs.text import Sentence, draw_text
from btp.tasks.pocketdocs.vocabulary import CITIES, NAMES, SPLITS, cities_of, codes, words


def said(document, text, kind, key="", value=""):
    """A sentence of a document; its place does not matter here."""
    return Sentence(kind, tuple(text.split()), key, value, document)


POEM = "moon star rain snow , ash dust stone sand"
TEXT = [
    said(1, "document 1 by mira from oslo :", "header", "mira", "oslo"),
    said(1, "the code of tom is 472 .", "code", "tom", "472"),
    said(1, "rome sells tea .", "sells", "rome", "tea"),
    said(1, "the lamp turned red .", "turned", "lamp", "red"),
    said(1, "apple gives zum .", "gives", "apple", "zum"),
    said(1, "horse gives dax .", "gives", "horse", "dax"),
    said(2, "document 2 by anna from rome :", "header", "anna", "rome"),
    said(2, "oslo sells salt .", "sells", "oslo", "salt"),
    said(2, "the lamp turned blue .", "turned", "lamp", "blue"),
    said(2, "the password is 118 .", "password", "password", "118"),
    said(2, f"poem : {POEM} .", "poem", "poem", POEM),
    said(2, "karl says hello .", "says", "karl", "hello"),
    said(3, "document 3 by karl from oslo :", "header", "karl", "oslo"),
    said(3, "mira says never .", "says", "mira", "never"),
]


def every(ability, text=TEXT, draws=200):
    """All questions that an ability asks of a text: the answer and the sentences that it needs."""
    found = (ask(ability, text, np.random.default_rng(i)) for i in range(draws))
    return {q[0]: (q[1], [" ".join(s.words) for s in q[2]]) for q in found if q}


def test_questions_answers_and_evidence_are_right():
    assert every("needle") == {"what is the password ?": ("118", ["the password is 118 ."])}
    assert every("lookup") == {"what is the code of tom ?": ("472", ["the code of tom is 472 ."])}
    assert every("document")["who wrote document 2 ?"] == ("anna", ["document 2 by anna from rome :"])
    assert every("document")["where is document 3 from ?"] == ("oslo", ["document 3 by karl from oslo :"])
    sold = ("salt", ["document 1 by mira from oslo :", "oslo sells salt ."])
    assert every("hop")["what is sold in the city of mira ?"] == sold
    assert every("latest")["what color is the lamp now ?"][0] == "blue"
    assert every("count")["how many documents are from oslo ?"][0] == "2"
    assert every("recent")["what was said last ?"] == ("never", ["mira says never ."])
    assert every("recent")["who spoke last ?"] == ("mira", ["mira says never ."])
    assert every("recite")["recite the poem ."][0] == POEM


def test_a_shown_example_never_answers_few_shot_itself():
    found = every("few_shot")
    assert {answer for answer, _ in found.values()} == {"zum", "dax"}
    assert not {"what does apple give ?", "what does horse give ?"} & set(found)


def test_a_hop_needs_two_documents():
    beside = [TEXT[0], said(1, "oslo sells salt .", "sells", "oslo", "salt")]
    assert every("hop", beside) == {}


def test_a_sample_is_the_same_whenever_it_is_drawn():
    one, two = PocketDocs("test", 0, 50)[17], PocketDocs("test", 0, 500)[17]
    assert one == two
    assert PocketDocs("test", 1, 50)[17].question != one.question


@pytest.mark.parametrize("split", SPLITS)
def test_each_ability_at_each_length_with_its_evidence(split):
    task = PocketDocs(split, 0, 9 * 3)
    for i, sample in enumerate(task[i] for i in range(len(task))):
        length = (256, 512, 1024)[i // 9]
        assert sample.ability == list(ABILITIES)[i % 9]
        assert length - RESERVED - 12 <= tokens_of(sample.question) <= length - 6
        shown = [sample.question[first:last] for first, last in sample.spans]
        assert shown
        assert all(text.endswith((" .", " :")) for text in shown)
        if sample.ability not in ("count", "few_shot"):
            assert sample.reference in " ".join(shown)
        if sample.ability == "recite":
            assert 40 <= tokens_of(sample.reference) + 1 <= 64


def test_splits_share_no_code_and_no_city_of_a_writer():
    assert sorted(code for split in SPLITS for code in codes(split)) == [f"{n:03d}" for n in range(1000)]
    for name in NAMES:
        assert sorted(city for split in SPLITS for city in cities_of(split, name)) == sorted(CITIES)
    for split in SPLITS:
        for seed in range(5):
            for s in draw_text(np.random.default_rng(seed), split, 500):
                assert s.kind not in ("code", "password") or s.value in codes(split)
                assert s.kind != "header" or s.value in cities_of(split, s.key)


def test_splits_share_no_text():
    drawn = {PocketDocs(split, 0, 40)[i].question for split in SPLITS for i in range(40)}
    assert len(drawn) == 40 * len(SPLITS)


def test_the_needle_lies_at_every_depth():
    task = PocketDocs("validation", 0, 500, ["needle"], [256])
    depth = [s.spans[0][0] / len(s.question) for s in (task[i] for i in range(500))]
    shares = np.histogram(depth, 4, (0, 1))[0] / 500
    assert (shares > 0.15).all()


def test_what_was_said_last_stands_at_the_end():
    task = PocketDocs("validation", 0, 30, ["recent"])
    for sample in (task[i] for i in range(30)):
        (_, end), *_ = sample.spans
        assert sample.question[end:].startswith(" question :")


def test_no_count_is_much_commoner_than_another():
    task = PocketDocs("validation", 0, 400, ["count"], [256])
    found = Counter(task[i].reference for i in range(400))
    assert set(found) == set("1234")
    assert all(40 <= n <= 168 for n in found.values())


def test_chance_is_the_commonest_answer_of_each_form():
    task = PocketDocs("test", 0, 360)
    chance = task.chance([task[i] for i in range(360)])
    assert set(chance) == set(ABILITIES)
    assert 0.25 <= chance["count"] < 0.5
    assert chance["lookup"] < 0.1


def test_every_word_is_in_the_vocabulary():
    task, known = PocketDocs("test", 3, 180), set(words())
    for sample in (task[i] for i in range(180)):
        asked = [c for w in (sample.question + " " + sample.reference).split() for c in (w if w.isdigit() else [w])]
        assert set(asked) <= known


def test_scoring():
    task = PocketDocs("test", 0, 9)
    by = {s.ability: s for s in (task[i] for i in range(9))}
    code = by["lookup"].reference
    assert task.score(by["lookup"], " ".join(code)) == 1  # as digits are decoded
    assert task.score(by["lookup"], code[::-1] + "0") == 0
    poem = by["recite"].reference
    lines = poem.split(" , ")
    assert task.score(by["recite"], poem) == 1
    assert task.score(by["recite"], " , ".join(lines[: len(lines) // 2])) == pytest.approx(2 / 3, abs=0.07)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "tset"}, "task.split is 'tset'"),
        ({"size": 0}, "no samples"),
        ({"abilities": ["reading"]}, "task.abilities holds"),
        ({"lengths": [64]}, "task.lengths is"),
    ],
)
def test_bad_settings_say_which_key(change, message):
    with pytest.raises(ValueError, match=message):
        PocketDocs(**({"split": "test", "seed": 0, "size": 9} | change))
