"""The soft accuracy of VQA and TextVQA: an answer counts as much as people agree on it."""

import re
from functools import lru_cache

from btp.tasks import metric
from btp.tasks.sample import Sample
from btp.tasks.scoring import plain_answer

LEAST = 4  # references; with fewer no answer could get 1
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's i'd've i'm i've isn't it'd it'd've it'll let's ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've somebody'll
somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've weren't we've what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll you'd you'd've you'll you're you've
"""
_APOSTROPHES = {word.replace("'", ""): word for word in _CONTRACTIONS.split()}


class Metric(metric.Metric):
    """Of ten references, an answer that n people gave gets min(1, n/3), averaged over leaving out each person.

    Answers and references are compared behind the normalisation of the VQA evaluation: case, punctuation, articles,
    number words up to ten, apostrophes of contractions.

    Source: Antol et al. 2015, arXiv:1505.00468; visualqa.org/evaluation.html.
    """

    name = "vqa_accuracy"

    def check(self, sample: Sample) -> None:
        """Enough references for an answer to be fully right."""
        if len(sample.answers) < LEAST:
            raise ValueError(
                f"sample {sample.id}: metric vqa_accuracy asks how many of ten people gave an answer, but it has "
                f"{len(sample.answers)} reference(s). Give it `answers`, or set task.dataset.metric=exact."
            )

    def score(self, sample: Sample, prediction: str) -> float:
        """In [0, 1]."""
        people, said = [plain(a) for a in sample.answers], plain(prediction)
        n = len(people)
        hits = people.count(said)
        # Left out, one of the `hits` people leaves hits - 1; any other leaves all of them.
        return (hits * min(1.0, (hits - 1) / 3) + (n - hits) * min(1.0, hits / 3)) / n if hits else 0.0


@lru_cache(maxsize=100_000)
def plain(text: str) -> str:
    """An answer as the VQA evaluation compares it."""
    text = " ".join(plain_answer(text).lower().split())
    thousands = re.search(r"\d,\d", text) is not None
    for mark in _MARKS:
        if mark in text:
            glued = f"{mark} " in text or f" {mark}" in text or thousands
            text = text.replace(mark, "" if glued else " ")
    text = re.sub(r"\.(?!\d)", "", text)
    found = (_DIGITS.get(word, word) for word in text.split())
    return " ".join(_APOSTROPHES.get(word, word) for word in found if word not in _ARTICLES)
