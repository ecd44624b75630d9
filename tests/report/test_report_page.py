"""The page in a real browser, on a laptop and on a phone, and the files beside it."""

import io

import pytest
from pages import SCREENS, shown, visible
from PIL import Image
from sample_run import ARMS, write_run

from btp.report.figures.token_overlays import kept_cells, stage_views
from btp.report.pages.run_page import write_report
from btp.results.reader import read_run

pytestmark = pytest.mark.long

PLAIN = ("layers.json", "calibration.yaml")  # fewer plots, less time


@pytest.fixture(scope="module", params=SCREENS)
def tab(request, browser, page):
    with shown(browser, page, request.param, permissions=["clipboard-read", "clipboard-write"]) as tab:
        yield tab


def methods(tab):
    return tab.eval_on_selector_all("#results tbody tr", "rows => rows.map(row => row.dataset.arm)")


def test_everything_is_there(tab):
    assert tab.title() == "btp on pocket, pocketvqa · btp report"
    assert "python run.py model=pocket pruner=btp" in tab.inner_text("header")
    assert "2-core CPU" in tab.inner_text("header")
    assert methods(tab) == ["unpruned", "btp", "random"]
    assert visible(tab, "section") == 8
    sizes = tab.eval_on_selector_all("img", "all => all.map(image => image.naturalWidth)")
    assert len(sizes) == 4 + 8
    assert min(sizes) > 0


def test_nothing_hangs_over_the_edge(tab):
    inner = tab.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert inner[0] <= inner[1]


def test_a_click_on_a_heading_sorts(tab):
    heading = tab.locator("#results thead button", has_text="macro")
    heading.click()
    assert methods(tab) == ["unpruned", "btp", "random"]
    heading.click()
    assert methods(tab) == ["random", "btp", "unpruned"]
    assert tab.get_attribute("#results th[aria-sort=ascending]", "aria-sort") == "ascending"
    tab.locator("#results thead button", has_text="p, unpruned").click()
    assert methods(tab)[-1] == "unpruned"  # no number: at the end, whichever way
    tab.locator("#results thead button", has_text="method").click()
    assert methods(tab) == ["btp", "random", "unpruned"]


def test_abilities_give_way_where_there_is_no_room(tab):
    """Nothing is cut off; a press brings them back, into further lines where one has no room."""
    wide = tab.viewport_size["width"] > 500
    button = tab.locator("#groups button[data-group='Accuracy by ability, %']")
    box = tab.locator("#table .scroll")
    if button.get_attribute("aria-pressed") == "true":  # they fit
        assert wide
        assert "cut-right" not in (box.get_attribute("class") or "")
        return
    assert visible(tab, "#results td[data-group='Accuracy by ability, %']") == 0
    button.click()
    assert visible(tab, "#results td[data-group='Accuracy by ability, %']") == 4 * 3
    assert "cut-right" not in (box.get_attribute("class") or "")
    button.click()


def test_the_bar_of_sections_fades_where_it_is_cut(tab):
    phone = tab.viewport_size["width"] < 500
    assert ("cut-right" in (tab.locator("nav").get_attribute("class") or "")) == phone


def test_a_sample_says_how_to_explain_it(tab, run_folder):
    """The command names the sample by its number; a press copies it."""
    first = tab.locator(".sample").first
    said = first.locator(".again code").inner_text()
    assert said == f"python -m btp.explain {run_folder} {int(first.locator('.id').inner_text()[-6:])}"
    first.locator(".copy").click()
    tab.wait_for_function("document.querySelector('.sample .copy').textContent === 'copied'")
    assert tab.evaluate("navigator.clipboard.readText()") == said


def test_samples_that_the_method_answers_otherwise_come_first(tab):
    found = tab.eval_on_selector_all(
        ".sample", "all => all.map(e => [...e.querySelectorAll('.said')].map(s => s.textContent).slice(0, 2))"
    )
    same = [unpruned == method for unpruned, method in found]
    assert same == sorted(same)
    assert same[0] is False


def test_costs_are_named_in_words(tab):
    names = tab.locator("#cost tbody th").all_inner_texts()
    assert names[0].startswith("visual FLOPs flops_visual_pdrop")


def test_the_sample_browser_filters(tab, run_folder):
    assert visible(tab, ".sample") == 8
    tab.click("button[data-ability=digit]")
    assert visible(tab, ".sample") == 2
    assert tab.inner_text("#count") == "2 of 8"
    tab.click("button[data-ability='']")
    tab.check("#differs")
    run = read_run(run_folder)
    same = run.samples[run.samples["sample"].isin(run.pictures)].groupby("sample")["agreement"].all()
    assert 0 < same.sum() < 8
    assert visible(tab, ".sample") == 8 - same.sum()
    tab.uncheck("#differs")
    assert visible(tab, ".sample") == 8


def test_the_sample_browser_shows_what_was_kept(tab):
    assert visible(tab, ".stage[data-strip=btp]") == 8 * 3
    assert visible(tab, ".stage[data-strip=random]") == 0
    tab.click("button[data-strip=random]")
    assert visible(tab, ".stage[data-strip=random]") == 8 * 3
    assert visible(tab, ".box") == 0
    tab.check("#boxes")
    assert visible(tab, ".box") == 8 * 4


def test_a_kept_patch_looks_like_the_picture_and_a_dropped_one_does_not(tab, run_folder):
    """Reads pixels of what the browser drew."""
    tab.click("button[data-strip=btp]")
    run = read_run(run_folder)
    sample = tab.inner_text(".sample >> nth=0 >> .id")
    picture = run.pictures[sample]
    cells = kept_cells(stage_views(run, "btp", sample)[0].kept, picture.views[0])
    drawn = Image.open(io.BytesIO(tab.locator(".sample .stage[data-strip=btp] svg").first.screenshot()))
    original = Image.open(picture.path)
    seen = {True: [], False: []}
    for row in range(12):
        for column in range(12):
            at = ((column + 0.5) / 12, (row + 0.5) / 12)
            here, there = (
                image.convert("RGB").getpixel((int(at[0] * image.width), int(at[1] * image.height)))
                for image in (drawn, original)
            )
            seen[bool(cells[row, column])].append(max(abs(a - b) for a, b in zip(here, there, strict=True)))
    assert sorted(seen[True])[int(0.9 * len(seen[True]))] < 30
    assert sorted(seen[False])[int(0.1 * len(seen[False]))] > 30


def test_files_lie_beside_the_page(page):
    beside = {p.name for p in page.parent.iterdir()}
    assert {"report.html", "table.csv", "table.md", "table.tex"} <= beside
    assert sorted(p.stem for p in (page.parent / "figures").iterdir()) == [
        "accuracy_by_ability",
        "accuracy_by_tokens",
        "calibration",
        "tokens_per_layer",
    ]
    assert len(list((page.parent / "overlays").glob("*.png"))) == 8


def test_what_a_model_says_is_text_not_markup(tmp_path):
    arms = ({**ARMS[0], "title": "<b>bold</b>", "note": "</script><script>alert(1)</script>"}, *ARMS[1:])
    text = write_report(write_run(tmp_path / "run", samples=4, arms=arms, overlays=0, drop=PLAIN)).read_text()
    assert "<b>bold</b>" not in text
    assert text.count("<script>") == 1


def test_a_poor_run_has_a_page_too(tmp_path):
    gone = ("trace.parquet", "layers.json", "cost.json", "calibration.yaml", "pictures/index.json")
    text = write_report(write_run(tmp_path / "run", samples=4, arms=ARMS[:1], drop=gone)).read_text()
    for section in ("cost", "calibration", "samples"):
        assert f'<section id="{section}">' not in text
    assert '<section id="table">' in text
