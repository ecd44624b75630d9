"""Which option an answer names, in the words that models use; an answer that leaves it open names none."""

import pytest

from btp.tasks.choice import chosen
from btp.tasks.metrics.relaxed import Metric as Relaxed
from btp.tasks.metrics.yes_no import said
from btp.tasks.sample import Sample
from btp.tasks.scoring import bare, plain_answer

PETS = ("cat", "dog", "bird")


@pytest.mark.parametrize(
    "answer",
    [
        *["B", "B.", "b", "(b)", "[B]", "`B`", '"B"', "**B**", "*B*", "### B", "- B", "1. B", "B!", "B\n"],
        *["\\boxed{B}", "$\\boxed{\\text{(B) dog}}$", "\\boxed{B", "<answer>B</answer>", "<think>A or C?</think>B"],
        *["option B", "Option b.", "Answer: **B**", "**Answer:** B", "Answer - B", "ANSWER:B", "Answer choice B"],
        *["The correct answer is **B**.", "The correct answer is **B", "The correct answer is:\n\n**B**"],
        *["<b>B</b>", "<p>It is <strong>B</strong>.</p>", "B<br>The cat is asleep.", "<ANSWER> <b>B</b></ANSWER>"],
        *["The correct option is B.", "The answer to the question is B", "the answer is b.", "It's B."],
        *["The answer is most likely B since A would be grey.", "So the best choice is B (dog).", "My answer is B"],
        *["I would choose B over A", "Among these, B fits best", "B is correct.", "B because it barks"],
        *["B\nThe cat is asleep.", "The animal barks.\n\nB", "B.\nA is wrong since it is a cat", "It barks, so B."],
        *["B. dog", "**B.** dog", "B: dog", "B) dog", "B dog", "B - dog", "B.dog", "**(B)** dog"],
        *["dog", "**Dog**.", "A dog", "The answer is a dog.", "The answer is A dog", "The animal is a dog, not a cat"],
        *["It is not A but B", "Option A is incorrect. Option B is correct.", "Not A. The answer is B."],
        *["（B）", "B：dog", "答案是B。", "Die Antwort ist B."],
    ],
)
def test_an_answer_that_names_b(answer):
    assert chosen(answer, PETS) == "B"


@pytest.mark.parametrize(
    "answer", ["A", "a", "(a)", "a. cat", "A\nThe cat", "The answer is A because it purrs", "A is right"]
)
def test_a_is_a_letter_where_no_noun_follows(answer):
    assert chosen(answer, PETS) == "A"


@pytest.mark.parametrize(
    "answer",
    [
        *["", "A or B", "(A) or (B)", "Both A and B", "A, B", "A/B", "The answer is A or B", "A\nB\nC"],
        *[
            "A. cat\nB. dog\nC. bird",
            "A. cat B. dog C. bird",
            "(A) cat, (B) dog, (C) bird",
            "Option A shows one thing while option B shows another",
            "a bird and a cat",
        ],
        *["E", "no idea", "A man stands there", "A tree", "The answer is a person", "I am not sure"],
        *["The answer is not A", "It is not a dog", "Option B is wrong", "None of the above", "Plan-B", "B.com", "B's"],
    ],
)
def test_an_answer_that_leaves_it_open(answer):
    assert chosen(answer, PETS) is None


@pytest.mark.parametrize(
    ("answer", "choices", "letter"),
    [
        ("It contains vitamin C.", ("vitamin A", "vitamin C", "iron"), "B"),  # the C of a text is no option C
        ("2", ("1", "2", "3"), "B"),
        ("0.5 m", ("5 m", "1 m"), None),  # 5 m is not in 0.5 m
        ("x is -5", ("-5", "5"), "A"),
        ("No.", ("yes", "no"), "B"),
        ("B", ("B", "A"), "B"),  # a letter is the letter that was asked for, whatever the options say
        ("The answer is I", tuple("qwertyuiop"), "I"),
        ("I think it is red", (*["no colour"] * 4, "red", *["no shape"] * 5), "E"),  # I is no option here
    ],
)
def test_letters_and_texts_that_look_alike(answer, choices, letter):
    assert chosen(answer, choices) == letter


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        *[("**Yes**", "yes"), ("\\boxed{No}", "no"), ("Answer: Yes.", "yes"), ("The answer is 'No'", "no")],
        *[("y", "yes"), ("N.", "no"), ("1. Yes", "yes"), ("Yes\nNo", "yes"), ("There isn't a dog", "no")],
        *[("There is a dog.", "yes"), ("There’s no dog", "no"), ("I cannot see one", "no"), ("None is there", "no")],
        *[("The image shows a cat. Yes, it is.", "yes"), ("A dog. No cat.", None), ("<think>no</think>Yes", "yes")],
    ],
)
def test_yes_and_no_behind_markup(answer, wanted):
    assert said(answer) == wanted


@pytest.mark.parametrize(
    ("answer", "true", "wanted"),
    [
        *[("**42**", "42", 1), ("\\boxed{42}", "42", 1), ("Answer: 42", "42", 1), ("$1,200.50", "1200", 1)],
        *[("1,234", "1234", 1), ("1,2", "12", 0), ("42 to 45", "42", 0)],
    ],
)
def test_numbers_behind_markup(answer, true, wanted):
    sample = Sample("1", (), "how many?", true, "all")
    assert Relaxed([sample]).score(sample, answer) == wanted


@pytest.mark.parametrize(
    "text", ["snake_case_name", "5*3*2", "a * b", "x**2", "C#", "$5 or $6", "answer is red", "2 < 3", "[bold]", "50%"]
)
def test_what_is_no_markup_stays(text):
    assert bare(text) == plain_answer(text) == text
