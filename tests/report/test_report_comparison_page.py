"""The page of a comparison in a real browser, on a laptop and on a phone, light and dark."""

import shutil
from pathlib import Path

import pytest
from sample_run import BLIND, SHRUNK, of, write_run
from test_report_page import FLAGS, SCREENS, find_browser, visible

from btp.report.gather import compare

SERIES = ("unpruned", "tome", "btp", "random", "downsampled", "no image")


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """BTP at two budgets, ToMe with merges at one, a failed run."""
    root = tmp_path_factory.mktemp("runs")
    small = {"samples": 16, "overlays": 3}
    write_run(root / "0", **small, arms=of("btp", SHRUNK, BLIND), stages=[("llm.layer.2", 0.5), ("llm.layer.6", 0.2)])
    write_run(root / "1", **small, arms=of("btp", SHRUNK, BLIND), stages=[("llm.layer.2", 0.2)])
    tome = of("tome", SHRUNK, BLIND)
    write_run(root / "2", **small, name="tome", arms=tome, merges=("tome",), stages=[("vision.output", 0.45)])
    write_run(root / "3", **small, name="vtw", run={"state": "failed", "error": "<b>no</b>"})
    _, (page, *_) = compare([root], [], tmp_path_factory.mktemp("out"))
    return page


@pytest.fixture(scope="module")
def browser():
    path = find_browser()
    if path is None:
        pytest.skip("no chromium or google-chrome on this machine")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=FLAGS.split())
        yield opened
        opened.close()


@pytest.fixture(
    scope="module", params=[(screen, scheme) for screen in SCREENS for scheme in ("light", "dark")], ids=str
)
def tab(request, browser, comparison, tmp_path_factory):
    """The page alone, without the files beside it; fails where it complained or asked for anything outside itself."""
    screen, scheme = request.param
    width, height = SCREENS[screen]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    context.set_default_timeout(120_000)
    tab = context.new_page()
    complaints, requests = [], []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    page = Path(shutil.copy(comparison, tmp_path_factory.mktemp("alone")))
    tab.goto(page.as_uri())
    yield tab
    context.close()
    assert complaints == []
    assert {url for url in requests if not url.startswith("data:")} == {page.as_uri()}


def series(tab):
    return tab.eval_on_selector_all("#results tbody tr", "rows => rows.map(row => row.dataset.series)")


def test_everything_is_there(tab):
    assert tab.title() == "pocket, pocketvqa · btp comparison"
    assert len(series(tab)) == 1 + 2 + 1 + 3 + 2
    assert set(series(tab)) == set(SERIES)
    for part in ("summary", "table", "plots-0", "kept-0", "runs", "left"):
        assert visible(tab, f"#{part}") == 1
    sizes = tab.eval_on_selector_all("img", "all => all.map(image => image.naturalWidth)")
    assert len(sizes) == 6 + 3
    assert min(sizes) > 0
    assert "failed: <b>no</b>" in tab.inner_text("#left")
    assert tab.inner_text("#runs").count("python run.py model=pocket") == 3


def test_nothing_hangs_over_the_edge(tab):
    inner = tab.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert inner[0] <= inner[1]


def test_no_text_lies_on_another(tab):
    """Texts of a method's card and of the samples' controls stand apart from each other."""
    boxes = tab.eval_on_selector_all(
        ".same .method p, .same figcaption, .kept .choice button, .kept .pick",
        """all => all.filter(e => e.offsetParent !== null).map(e => {
          const b = e.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; })""",
    )
    assert len(boxes) > 10
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        for a0, b0, a1, b1 in boxes[:i]:
            assert x1 <= a0 + 1 or a1 <= x0 + 1 or y1 <= b0 + 1 or b1 <= y0 + 1


def test_the_table_sorts(tab):
    before = series(tab)
    heading = tab.locator("#results thead button", has_text="macro")
    heading.click()
    scores = tab.eval_on_selector_all("#results tbody tr", "rows => rows.map(row => +row.cells[3].dataset.sort)")
    assert scores == sorted(scores, reverse=True)
    assert visible(tab, "#results tr.first") == 0
    tab.locator("#results thead button", has_text="p, BTP").click()
    assert series(tab)[0] in ("tome", "downsampled")  # rows without a test come last
    tab.reload()
    assert series(tab) == before


def test_one_sample_and_one_budget_at_a_time(tab):
    assert visible(tab, ".same") == 1
    tab.select_option(".pick", "0")
    shown = "all => all.filter(e => e.offsetParent !== null).map(e => e.querySelector('.who b').textContent)"
    low = tab.eval_on_selector_all(".kept .method", shown)
    assert "btp" in low
    assert "tome" not in low
    tab.click(".kept button[data-budget='']")
    every = tab.eval_on_selector_all(".kept .method", shown)
    assert len(every) == 1 + 2 + 3 + 2
    assert tab.locator(".same:not([hidden]) path.merged").count() == 1
    assert "tinted" in tab.inner_text("#kept-0 .about >> nth=0")
    first = tab.inner_text(".same:not([hidden]) .id")
    tab.click(".kept .next")
    assert tab.inner_text(".same:not([hidden]) .id") != first
    tab.click(".kept .previous")
    tab.click(".kept .previous")
    assert tab.evaluate("document.querySelector('.pick').selectedIndex") == 2  # round to the last
    tab.reload()


def test_an_answer_is_right_or_wrong(tab):
    tab.click(".kept button[data-budget='']")
    marks = tab.eval_on_selector_all(
        ".same:not([hidden]) .method .verdict", "all => all.map(e => [e.getAttribute('aria-label'), e.textContent])"
    )
    assert {tuple(m) for m in marks} <= {("right", "✓"), ("wrong", "✗"), ("partly", "0.40")}
    assert len(marks) == 8
    tab.reload()


def test_what_a_model_says_is_text_not_markup(tmp_path):
    arms = [dict(arm) for arm in of("btp")]
    arms[1]["title"] = "<i>btp</i>"
    write_run(tmp_path / "run", samples=4, overlays=1, arms=arms, run={"command": "</script><script>alert(1)</script>"})
    _, (page, *_) = compare([tmp_path], [("<u>", "<s>")], tmp_path / "out")
    text = page.read_text()
    for markup in ("<i>btp", "<u>", "<s>"):
        assert markup not in text
    assert text.count("<script>") == 1


def test_a_poor_comparison_has_a_page_too(tmp_path):
    """One run without costs, pictures, traces or controls; and one of costs only."""
    gone = ("trace.parquet", "layers.json", "cost.json", "calibration.yaml", "pictures/index.json")
    write_run(tmp_path / "a", samples=4, arms=of("btp")[:2], drop=gone)
    text = compare([tmp_path / "a"], [], tmp_path / "out")[1][0].read_text()
    assert 'id="kept-0"' not in text
    assert 'id="left"' not in text
    write_run(tmp_path / "b", samples=4, config={"model": {"name": "llava15"}}, drop=["samples.parquet"])
    text = compare([tmp_path / "b"], [], tmp_path / "out")[1][0].read_text()
    assert 'id="plots-0"' not in text
    assert "costs only" in text
    assert "890 M" in text
