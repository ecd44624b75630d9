"""A life in a real browser, on a laptop and on a phone, and in a terminal."""

import io

import pytest
from pages import SCREENS, shown
from PIL import Image
from rich.console import Console

from btp.report.pages.explain_data import HIGHEST, Life, Said, StageLife, numbered, ranks, shades
from btp.report.pages.explain_page import write_life
from btp.report.pages.explain_terminal import ScreenLife
from btp.results.reader import View

NO = float("-inf")


def life(**changed):
    """Six patches in a row of the whole, four of them again as tiles; 2 flows into 3 at the first stage."""
    stages = (
        StageLife(
            site="llm.layer.1",
            plan="keep 3 tokens, balance 0.6",
            alive=tuple(range(6)),
            kept=(0, 3, 5),
            rules={"attention": (0, 3), "diversity": (5,)},
            scores={"attention score": {0: 3.0, 1: 0.5, 2: 0.25, 3: 2.0, 4: 1.0, 5: 0.0}, "distance": {0: NO, 5: 0.5}},
            merged=(3,),
            flowed={2: 3},
            recorded=(0, 3, 5),
        ),
        StageLife("llm.layer.2", "keep 1 token", (0, 3, 5), (3,), {"attention": (3,)}, recorded=(0,)),
    )
    facts = {
        "run": "pocket-btp",
        "command": "python run.py",
        "model": "pocket",
        "task": "pocketvqa",
        "arm": "btp",
        "pruner": "btp",
        "sample": "test-1",
        "ability": "digit",
        "question": "which digit <is> red ?",
        "reference": "7",
        "picture": Image.new("RGB", (60, 40), (200, 30, 30)),
        "pictures": 1,
        "boxes": ((0.1, 0.1, 0.4, 0.6), (0.6, 0.5, 0.9, 1.0)),
        "targets": ((0.6, 0.5, 0.9, 1.0),),
        "labels": ("red 7", "blue 1"),
        "views": (View((2, 3), None, "whole"), View((1, 2), (4, -1), "tiles")),
        "total": 6,
        "unpruned": Said("7", (("7", 0.9), ("1", 0.1)), "7", 1.0),
        "pruned": Said("1", (("1", 0.6),), "one", 0.0),
        "others": (("random", "", 0.0),),
        "stages": stages,
        "layers": (6, 3, 1),
        "kl": 0.25,
        "notes": ("An answer is not the run's.",),
    }
    return Life(**facts | changed)


def test_shades_and_ranks():
    scores = {4: 1.0, 5: 3.0, 6: NO, 7: 2.0, 8: 2.0}
    assert shades(scores) == {4: 0.0, 5: 1.0, 7: 0.5, 8: 0.5}
    assert ranks(scores) == {5: 1, 7: 2, 8: 3, 4: 4}
    assert shades({1: 2.0}) == {1: 1.0}
    assert shades({1: NO}) == {}


def test_letters_differ():
    rules = {"seed": (0,), "saliency": (3,), "s": (5,)}
    stage = StageLife("llm.layer.1", "keep 3 tokens", tuple(range(6)), (0, 3, 5), rules)
    assert life(stages=(stage,)).letters == {"seed": "S", "saliency": "A", "s": "B"}


def printed(shown, width=120, colored=False):
    console = Console(width=width, record=True, file=io.StringIO(), force_terminal=colored, no_color=not colored)
    console.print(ScreenLife(shown))
    return console.export_text()


def test_the_terminal():
    """Letters stand where tokens stay; dots where they go; nothing where they were gone."""
    said = printed(life())
    title, above, below = said[said.index("L1  6 → 3") :].splitlines()[:3]
    first, second = title.index("L1"), title.index("L2")
    assert [line[first:second].rstrip() for line in (above, below)] == ["A · ·", "A+· D"]
    assert [line[second:].rstrip() for line in (above, below)] == ["·", "A   ·"]
    assert "✓  7" in said
    assert "in the run: one" in said
    assert "! L2: other tokens than in the run: 3 here, 0 there" in said
    assert "2 x 3 visual tokens; L1 is llm.layer.1" in said
    assert "picture" not in said  # without colours there is nothing to see in it
    assert "picture " in printed(life(), colored=True)
    assert "tiles: 1 x 2 visual tokens" in said
    assert "An answer is not the run's." in said
    assert "6  3  1" in said


def test_a_narrow_terminal():
    assert max(len(line) for line in printed(life(), 60).splitlines()) <= 60


def test_three_stages_fit_into_eighty_columns():
    """Side by side, each on one line of the table, however long its plan."""
    sites, view = ("llm.layer.10", "llm.layer.20", "llm.layer.30"), View((12, 12))
    rules = {"attention": (0,), "rebalancing": (1,), "spatial seed": (2,), "diversity": (3,)}
    stages = tuple(StageLife(s, "keep 144 tokens, balance 0.85", tuple(range(144)), (0, 1, 2, 3), rules) for s in sites)
    lines = [line.rstrip() for line in printed(life(stages=stages, views=(view,)), 80).splitlines()]
    assert "L10  144 → 4               L20  144 → 4               L30  144 → 4" in lines
    table = [line for line in lines if line.endswith("keep 144 tokens, balance 0.85")]
    assert [line.split()[:8] for line in table] == [
        [f"L{n}", "144", "→", "4", "1", "1", "1", "1"] for n in (10, 20, 30)
    ]


def test_a_score_without_rules_says_its_range():
    scores = {"score": {0: 3.0, 1: 2.5, 2: 1.0, 3: NO}}
    stage = StageLife("vision.layer.3", "keep 2 tokens", (0, 1, 2, 3), (0, 1), {HIGHEST: (0, 1)}, scores)
    said = printed(life(stages=(stage,)))
    assert "H  highest score" in said
    assert "score at V3: kept 2.5 to 3, dropped 1 to 1" in said
    assert "score at" not in printed(life())  # rules say it


def test_numbers_of_samples():
    """What an id ends in, where no other ends in the same."""
    assert numbered(["test-0-000003", "a12", "b12", "c", "test-0-000000", "test-0-000003"]) == {
        "3": "test-0-000003",
        "0": "test-0-000000",
    }


def test_no_views():
    """Nothing is drawn of a model whose tokens have no place."""
    assert "has a place on the picture, so none are drawn" in printed(life(views=()))


@pytest.fixture(scope="module", params=SCREENS)
def tab(request, browser, tmp_path_factory):
    with shown(browser, write_life(life(), tmp_path_factory.mktemp("life") / "page.html"), request.param) as tab:
        yield tab


def test_everything_is_there(tab):
    assert tab.title() == "test-1 under btp · btp explain"
    assert tab.inner_text("h1") == "which digit <is> red ?"
    assert "in the run: one" in tab.inner_text("#answers")
    assert tab.locator(".stage").count() == 2
    assert tab.locator(".stage >> nth=0 >> .frame").count() == 2 * 3  # two views of rules and two scores
    assert tab.locator(".layers li").count() == 3
    assert tab.inner_text(".meaning").startswith("distance")
    assert tab.locator(".stage:nth-of-type(1) .scale").all_inner_texts()[0].split() == ["0", "3"]
    assert tab.eval_on_selector_all("rect.needed", "all => all.map(e => e.getAttribute('x'))")[:3] == ["1.8"] * 3
    assert tab.eval_on_selector(".stage .token", "e => e.offsetHeight") == 0  # no blank strip before one points
    texts = tab.eval_on_selector_all(
        ".stage:nth-of-type(1) [data-view='0'] .letter", "all => all.map(t => t.textContent)"
    )
    assert texts == ["A", "A", "D"]
    assert tab.inner_text(".stage >> nth=1 >> .rules .other") == "! other tokens than in the run: 3 here, 0 there"


def test_nothing_hangs_over_the_edge(tab):
    inner = tab.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert inner[0] <= inner[1]


STORIES = [
    (0.1, 0.2, "token 0 (row 0, column 0)", "stays: attention · attention score 3 (1 of 6)", "goes"),
    (0.9, 0.2, "token 2 (row 0, column 2)", "goes, into token 3 · attention score 0.25 (5 of 6)", "was gone before"),
    (
        *(0.1, 0.8, "token 3 (row 1, column 0)"),
        "stays: attention, holds others that flowed in · attention score 2 (2 of 6)",
        "stays: attention",
    ),
    (
        *(0.9, 0.8, "token 5 (row 1, column 2)"),
        "stays: diversity · attention score 0 (6 of 6) · distance 0.5 (1 of 1)",
        "goes",
    ),
]


@pytest.mark.parametrize(("x", "y", "token", "first", "second"), STORIES)
def test_a_token_tells_its_story(tab, x, y, token, first, second):
    """Pointed at in one panel, it is marked in all of the same view."""
    frame = tab.locator(".panels .frame").first
    frame.scroll_into_view_if_needed()
    box = frame.bounding_box()
    tab.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    assert [tab.inner_text(f".token >> nth={i}") for i in range(2)] == [f"{token} {first}", f"{token} {second}"]
    assert tab.locator(".frame.pointed").count() == 3 + 1


def test_a_cell_without_a_token(tab):
    frame = tab.locator(".panels .frame[data-view='1']").first
    frame.scroll_into_view_if_needed()
    box = frame.bounding_box()
    tab.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.5 * box["height"])
    assert tab.inner_text(".token >> nth=0") == "no visual token here"
