"""A text's life: its words as layers hold them, its key heads and its decode steps, in a terminal and on a page."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from btp.report.pages.explain_data import Life, Said, StageLife
from btp.report.pages.explain_held import HeldLayer, StepLife, named, strip
from btp.report.pages.explain_page import write_life
from btp.report.pages.explain_terminal import ScreenLife

WORDS = (" mira", " lives", " in", " oslo", " .", " who", " ?", " it")
HEADS = np.array([[1, 0, 0, 1, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0, 1, 1]], bool)


def text_life(**changed):
    """Eight words; a cut leaves six in front of layer 2, of which two heads hold four each in layer 3."""
    stage = StageLife(
        "llm.layer.2",
        "keep 70%, of alive",
        tuple(range(7)),
        (0, 1, 3, 5, 6),
        {"highest score": (0, 1, 3, 5, 6)},
        {"score": dict(enumerate([0.9, 0.5, 0.1, 0.6, 0.2, 0.7, 0.8]))},
        recorded=(0, 1, 3, 5, 6),
    )
    cut = np.array([[1, 1, 0, 1, 0, 1, 1, 1]], bool)
    steps = tuple(
        StepLife(step, site, rows, back, parked, waiting, places)
        for step, site, rows, back, parked, waiting, places in (
            (0, "llm.layer.2", 6, 0, 2, 2, ()),
            (1, "llm.layer.2", 2, 1, 0, 1, (4,)),
            (2, "llm.layer.2", 1, 0, 0, 1, ()),
            (3, "llm.layer.2", 3, 2, 0, 0, (2, 9)),
        )
    )
    facts = {
        "run": "pocket_text-lazyllm",
        "command": "python run.py",
        "model": "pocket_text",
        "task": "pocketdocs",
        "arm": "lazyllm",
        "pruner": "lazyllm",
        "sample": "test-1",
        "ability": "needle",
        "question": "who lives in oslo ?",
        "reference": "mira",
        "picture": None,
        "pictures": 0,
        "boxes": (),
        "labels": (),
        "views": (),
        "total": 7,
        "unpruned": Said("mira", (("mira", 0.9),), "mira", 1.0),
        "pruned": Said("vera", (("vera", 0.6),), "vera", 0.0),
        "others": (("random", "", 0.0),),
        "stages": (stage,),
        "layers": (7, 7, 5, 5),
        "kl": 0.25,
        "unit": "prompt tokens",
        "words": WORDS,
        "held": (HeldLayer(2, cut, (0,), False), HeldLayer(3, HEADS, (0, 2), True, "kept 1 to 2, dropped 0 to 1")),
        "steps": steps,
        "checks": ((True, "As many slots left."), (False, "Other than in the run: 9 rows were computed here.")),
    }
    return Life(**facts | changed)


def printed(life, width=80):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(ScreenLife(life))
    return console.export_text()


def test_a_strip_is_dense_where_much_is_held():
    assert strip([True] * 4 + [False] * 4, 8) == "####    "
    assert strip([True, False, False, False, True, True, True, True], 2) == ".#"
    assert strip([True, True, True, False], 1) == "+"  # full is said of full ones alone
    assert strip([True], 60) == "#"


def test_words_are_named_by_their_places():
    """Those behind the prompt are the answer's."""
    assert named(WORDS, (0, 3, 9), 3) == "mira, oslo, answer 2"
    assert named(WORDS, range(8), 2) == "mira, lives and 6 more"


def test_shares_and_counts_of_heads():
    layer = text_life().held[1]
    assert layer.counts == [4, 4]
    assert layer.shares == [100, 50, 0, 50, 0, 0, 100, 100]
    assert layer.title == "layer 3: 4 of 8 slots a head, held by all heads 3, by some 2, by none 3"
    assert HeldLayer(0, HEADS[:1], (0,), False).title == "layer 0: 4 of 8 tokens"
    uneven = np.array([[1, 1], [1, 0]], bool)
    assert HeldLayer(0, uneven, (0, 0), True).title.startswith("layer 0: 1 to 2 of 2 slots a head")


def test_the_terminal_of_a_text():
    said = printed(text_life())
    assert "layer 2: 6 of 8 tokens\n mira lives ·1 oslo ·1 who ? it" in said
    assert " mira ~lives ·1 ~oslo ·2 ? it\nhead 0  |#  #  ##| 4\nhead 1  |##    ##| 4, 2 left in steps" in said
    assert "score: kept 1 to 2, dropped 0 to 1" in said
    rows = [line.split() for line in said.splitlines() if re.match(r"(prompt|[123]) +\d", line)]
    assert rows == [
        ["prompt", "6", "0", "2"],
        ["1", "2", "1", "0", "."],
        ["2", "1", "0", "0"],
        ["3", "3", "2", "0", "in,", "answer", "2"],
    ]
    assert "0 states wait behind L2 at the end" in said
    assert "✓ Every stage kept the same tokens as in the run." in said
    assert "! Other than in the run: 9 rows were computed here." in said
    assert "prompt tokens per layer  7  7  5  5" in said
    assert "visual" not in said
    assert "picture" not in said
    assert not text_life().same
    assert text_life(checks=()).same


@pytest.mark.parametrize("width", [60, 80])
def test_a_text_fits_into_a_terminal(width):
    """Many words, heads, sites and steps, words without end, and control characters in words."""
    random = np.random.default_rng(0)
    words = tuple(random.choice([" a", " longer", "piece", " \x1b[31m", "x" * 90], 900))
    heads = random.random((12, 900)) < 0.3
    sites = [f"llm.layer.{at}" for at in (10, 15, 20, 25, 30)]
    steps = tuple(StepLife(n, site, 12, 11, 9, 120, tuple(range(11))) for n in range(40) for site in sites)
    held = tuple(HeldLayer(at, heads, (123,) * 12, True, "kept 1.23e-05 to 2, dropped 0 to 1") for at in (3, 31))
    said = printed(text_life(words=words, held=held, steps=steps, total=900), width)
    assert max(map(len, said.splitlines())) <= width
    assert "660 words in the middle are not shown" in " ".join(said.split())
    assert "4 more heads are not shown" in said
    assert "28 more steps are not shown; stages between" in said
    assert "\x1b" not in said


def test_the_page_of_a_text(tmp_path):
    page = write_life(text_life(), tmp_path / "life.html").read_text().rpartition("<script>")[0]
    assert "layer 3: 4 of 8 slots a head" in page
    assert '<path d="M0 0h1v1h-1zM3 0h1v1h-1zM6 0h2v1h-2z"/>' in page
    assert "4, 2 left in steps" in page
    assert '<i class="gone" style="--held: 0%"> in</i>' in page
    assert "<td>3</td>" in page
    assert "in, answer 2" in page
    assert "Prompt tokens per layer" in page
    assert "score: kept 0.5 to 0.9, dropped 0.1 to 0.2" in page
    assert "isual token" not in page
    assert "<img" not in page


def test_pictures_whose_cache_lost_slots_show_heads_without_words():
    said = printed(text_life(words=(), unit="visual tokens", steps=()))
    assert "head 0  |#  #  ##| 4" in said
    assert "~lives" not in said
