"""Metrics against worked examples: by hand from the papers' definitions, and from the answers that people give."""

import random
from collections import Counter
from itertools import combinations

import pytest

from btp.tasks.metric import make_metric
from btp.tasks.metrics.cider import words
from btp.tasks.metrics.multiple_choice import chosen
from btp.tasks.metrics.vqa_accuracy import plain
from btp.tasks.metrics.yes_no import said
from btp.tasks.sample import Sample

ANIMALS = ("dog", "cat", "hot dog", "a cow")


def sample(reference="yes", ability="all", **more):
    """A sample of which only the answer matters."""
    number = more.pop("id", f"s{random.random()}")
    return Sample(number, (), "what?", reference, ability, **more)


def score(name, prediction, *answers, **more):
    """One answer's score."""
    one = sample(answers[0], references=answers if len(answers) > 1 else (), **more)
    return make_metric(name, [one]).score(one, prediction)


@pytest.mark.parametrize(
    ("said_", "answers", "wanted"),
    [("A Dog.", ["a dog"], 1), ("dog", ["a dog"], 0), ("cat", ["dog", "Cat"], 1), ("", ["dog"], 0)],
)
def test_exact(said_, answers, wanted):
    assert score("exact", said_, *answers) == wanted


@pytest.mark.parametrize(
    ("said_", "answers", "wanted"),
    [
        ("Hello World", ["hello  world"], 1),
        ("helo", ["hello"], 0.8),  # one letter of five
        ("abcd", ["abxy"], 0),  # two of four: not above one half
        ("abcd", ["abcx"], 0.75),
        ("12", ["1999", "12"], 1),
        ("", ["x"], 0),
    ],
)
def test_anls(said_, answers, wanted):
    assert score("anls", said_, *answers) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("said_", "answer", "wanted"),
    [
        *[("105", "100", 1), ("95", "100", 1), ("105.1", "100", 0), ("94.9", "100", 0), ("-5", "-5.2", 1)],
        *[("12%", "0.12", 1), ("12%", "12", 0), ("0.01", "0", 0), ("0", "0", 1), ("Canada.", "canada", 1)],
        *[("5 million", "5", 0), ("ten", "10", 0)],
    ],
)
def test_relaxed(said_, answer, wanted):
    assert score("relaxed", said_, answer) == wanted


def test_vqa_accuracy_leaves_each_person_out():
    """Against the definition: the mean over all nine others of min(1, how many of them said it / 3)."""
    rng = random.Random(0)
    for _ in range(50):
        people = rng.choices(["red", "blue", "green"], [6, 2, 1], k=10)
        for answer in ("red", "blue", "green", "pink"):
            by_hand = sum(min(1, Counter(nine)[answer] / 3) for nine in combinations(people, 9)) / 10
            assert score("vqa_accuracy", answer, *people) == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        *[("The  Red\ncar", "red car"), ("Two", "2"), ("none", "0"), ("dont know!", "don't know"), ("1,000", "1000")],
        *[("yes, sir", "yes sir"), ("3.5", "3.5"), ("Mr. X.", "mr x"), ("black-white", "black white"), ("a", "")],
    ],
)
def test_vqa_answers_are_compared_behind_normalisation(text, wanted):
    assert plain(text) == wanted


@pytest.mark.parametrize(
    ("prediction", "letter"),
    [
        *[("B", "B"), ("b.", "B"), ("(B)", "B"), ("B. cat", "B"), ("B: it is a dog", "B"), ("B)", "B")],
        *[
            ("The answer is C.", "C"),
            ("Answer: C", "C"),
            ("I think (D) fits", "D"),
            ("cat", "B"),
            ("It is a cat.", "B"),
        ],
        *[("A cow stands there", "D"), ("it is a hot dog", "C"), ("a dog and a cat", None), ("", None), ("E", None)],
        *[("A dog", "A"), ("no idea", None), ("(A) or (B)", None)],
    ],
)
def test_the_option_that_an_answer_names(prediction, letter):
    assert chosen(prediction, ANIMALS) == letter


def test_multiple_choice_counts_a_group_where_all_are_right():
    samples = [sample("A", choices=ANIMALS, group=g) for g in "1123"]
    found = make_metric("multiple_choice", samples).summary(samples, ["A", "B", "A", "who knows"])
    assert found == {"accuracy": 0.5, "circular": pytest.approx(1 / 3), "unclear": 0.25}
    alone = [sample("A", choices=ANIMALS) for _ in range(2)]
    assert "circular" not in make_metric("multiple_choice", alone).summary(alone, ["A", "B"])


@pytest.mark.parametrize(
    ("prediction", "wanted"),
    [
        *[("Yes", "yes"), ("no.", "no"), ("No, there is none. Yes.", "no"), ("There is not a dog", "no")],
        *[("Yes, there is no other.", "yes"), ("I would say yes", "yes"), ("nothing", None), ("", None)],
    ],
)
def test_yes_and_no(prediction, wanted):
    assert said(prediction) == wanted


def test_f1_counts_as_by_hand():
    """Two of three yes found, one no taken for a yes, one answer that says neither."""
    samples = [sample(r) for r in ("yes", "yes", "yes", "no", "no", "no")]
    found = make_metric("yes_no", samples).summary(samples, ["yes", "Yes.", "no", "yes", "no", "a dog"])
    assert found == {
        "accuracy": pytest.approx(3 / 6),
        "precision": pytest.approx(2 / 3),
        "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(2 / 3),
        "yes": pytest.approx(3 / 6),
        "unclear": pytest.approx(1 / 6),
    }
    assert make_metric("yes_no", samples).summary(samples, ["no"] * 6)["f1"] == 0


def test_mme_adds_accuracy_and_pairs_per_category():
    samples = [
        *[sample("yes", "count", group="1"), sample("no", "count", group="1")],
        *[sample("yes", "count", group="2"), sample("no", "count", group="2")],
        *[sample("yes", "code_reasoning", group="1"), sample("no", "code_reasoning", group="1")],
        sample("yes", "count", group="3"),  # limit cut its partner off
    ]
    metric = make_metric("mme", samples)
    found = metric.summary(samples, ["yes", "no", "yes", "yes", "no", "no", "yes"])
    assert found["accuracy"] == pytest.approx(5 / 7)
    assert found["acc_plus"] == pytest.approx(1 / 3)
    assert found["perception"] == pytest.approx(100 * (4 / 5 + 1 / 2))
    assert found["cognition"] == pytest.approx(100 * (1 / 2 + 0))
    assert found["score"] == pytest.approx(found["perception"] + found["cognition"])
    assert "cognition" not in metric.summary(samples[:4], ["yes"] * 4)


def test_cider_of_the_reference_is_high_and_of_other_words_is_zero():
    samples = [
        sample("a red bird sits on a branch", id="1", references=("a red bird sits on a branch", "red bird on a tree")),
        sample("two men play tennis in the sun", id="2"),
        sample("a plate of food on a table", id="3"),
    ]
    metric = make_metric("cider", samples)
    said_ = ["A red bird sits on a branch.", "two men play tennis in the sun", "an old car"]
    scores = metric.scores(samples, said_)
    assert scores[1] == pytest.approx(1)  # its only reference, word by word: 10 on the usual scale
    assert 0.5 < scores[0] < 1
    assert scores[2] == 0
    assert metric.summary(samples, said_)["cider"] == pytest.approx(10 * sum(scores) / 3)
    assert [metric.score(s, p) for s, p in zip(samples, said_, strict=True)] == pytest.approx(scores)
    assert words("It's a well-known  place, isn't it?") == "it's a well-known place isn't it"


@pytest.mark.parametrize(
    ("name", "one", "message"),
    [
        ("bleu", sample(), "task.dataset.metric is 'bleu'. Choose from: anls, cider, exact, mme, multiple_choice"),
        ("multiple_choice", sample("A"), "needs 2 to 26 choices, but it has 0. Give it `choices`"),
        ("multiple_choice", sample("C", choices=("x", "y")), "neither one of its choices nor a letter from A to B"),
        ("yes_no", sample("maybe"), "its answer is 'maybe', but metric yes_no or mme needs yes or no"),
        ("mme", sample(), "names no group. Give both questions the same `group`"),
        ("vqa_accuracy", sample("red"), r"has 1 reference\(s\). Give it `answers`, or set task.dataset.metric=exact"),
    ],
)
def test_what_a_metric_cannot_score_is_refused(name, one, message):
    with pytest.raises(ValueError, match=message):
        make_metric(name, [one])


def test_cider_without_its_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocoevalcap.cider.cider_scorer", None)
    with pytest.raises(ValueError, match=r"needs pycocoevalcap. Install it: pip install -r requirements-captions.txt"):
        make_metric("cider", [sample()])
