"""The page of a comparison in a real browser, on a laptop and on a phone, light and dark."""

import json
import re
import shutil
from pathlib import Path

import pytest
from pages import SCREENS, shown, visible
from sample_run import BLIND, SHRUNK, of, write_run

from btp.report.comparison.compare import compare
from btp.report.figures.token_overlays import stage_views
from btp.report.pages.run_page import write_report
from btp.results.reader import read_run

pytestmark = pytest.mark.long

SERIES = ("unpruned", "tome", "btp", "random", "downsampled", "no image")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """BTP at two budgets, one of them with moved stages and not inert, ToMe with merges at one, a failed run."""
    root = tmp_path_factory.mktemp("runs")
    small = {"samples": 16, "overlays": 3}
    write_run(root / "0", **small, arms=of("btp", SHRUNK, BLIND), stages=[("llm.layer.2", 0.5), ("llm.layer.6", 0.2)])
    moved = [arm | ({"moved": 2} if arm["arm"] == "btp" else {}) for arm in of("btp", SHRUNK, BLIND)]
    loud = {"inert": {"checked": 8, "identical": False, "max_logit_difference": 0.5}}
    few = {"limit": 8, "trainer": {"batch": 8}}
    write_run(root / "1", **small, arms=moved, stages=[("llm.layer.2", 0.2)], run=loud, config=few)
    tome = of("tome", SHRUNK, BLIND)
    write_run(root / "2", **small, name="tome", arms=tome, merges=("tome",), stages=[("vision.output", 0.45)])
    write_run(root / "3", **small, name="vtw", run={"state": "failed", "error": "<b>no</b>"})
    write_report(root / "0")
    return root


@pytest.fixture(scope="module")
def comparison(root):
    _, (page, *_) = compare([root], [], root / "sweep/comparison")
    return page


LOOKS = [(screen, scheme) for screen in SCREENS for scheme in ("light", "dark")]


@pytest.fixture(scope="module", params=LOOKS, ids=str)
def tab(request, browser, comparison, tmp_path_factory):
    """The page alone, without the files beside it."""
    screen, scheme = request.param
    page = Path(shutil.copy(comparison, tmp_path_factory.mktemp("alone")))
    with shown(browser, page, screen, again=True, color_scheme=scheme) as tab:
        yield tab


def series(tab):
    return tab.eval_on_selector_all("#results tbody tr", "rows => rows.map(row => row.dataset.series)")


def test_everything_is_there(tab):
    assert tab.title() == "pocket, pocketvqa · btp comparison"
    assert len(series(tab)) == 1 + 2 + 1 + 3 + 2
    assert set(series(tab)) == set(SERIES)
    for part in ("summary", "table", "plots-0", "kept-0", "settings", "runs", "left"):
        assert visible(tab, f"#{part}") == 1
    sizes = tab.eval_on_selector_all("img", "all => all.map(image => image.naturalWidth)")
    assert len(sizes) == 1  # the sample's picture; plots are drawn in place
    assert min(sizes) > 0
    assert "failed: <b>no</b>" in tab.inner_text("#left")
    assert tab.inner_text("#runs").count("python run.py model=pocket") == 3


def test_nothing_hangs_over_the_edge(tab):
    for button in tab.locator("#groups button").all():
        if button.get_attribute("aria-pressed") == "false":
            button.click()  # the widest that the table can be
    inner = tab.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert inner[0] <= inner[1]
    box, table = tab.evaluate(
        "[document.querySelector('#table .scroll'), document.getElementById('results')].map(e => e.offsetWidth)"
    )
    assert table <= box  # rows take several lines where one has no room
    tab.reload()


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
    tab.locator("#results thead button", has_text="macro").focus()
    tab.keyboard.press("Enter")
    assert tab.get_attribute("#results th[aria-sort=ascending]", "title").startswith("Mean over the abilities")
    tab.locator("#results thead button", has_text="p, BTP").click()
    assert series(tab)[0] in ("tome", "downsampled")  # rows without a test come last
    tab.reload()
    assert series(tab) == before


def test_rows_are_filtered_and_columns_folded(tab):
    tab.fill("#filter", "RANDOM btp")
    assert visible(tab, "#results tbody tr") == 1
    tab.fill("#filter", "")
    assert visible(tab, "#results tbody tr") == len(series(tab))
    cells = "#results td[data-group='Accuracy by ability, %']"
    assert visible(tab, cells) == 0  # no room, and the small plots show it
    tab.click("#groups button[data-group='Accuracy by ability, %']")
    assert visible(tab, cells) == 4 * len(series(tab))
    tab.click("#groups button[data-group='Cost']")
    assert visible(tab, "#results td[data-group='Cost']") == 0
    tab.reload()


def data(tab, name):
    return json.loads(tab.inner_text(f"#{name}-data-0") or tab.text_content(f"#{name}-data-0"))


def marks(tab, host):
    """[x, y] on the screen of every mark of the plots shown, with its series and its row."""
    names = [look["name"] for look in looks(tab)]
    found = tab.eval_on_selector_all(
        f"{host}:not([hidden]) .marks:not(.gone)",
        """all => all.flatMap(group => [...group.querySelectorAll("use")].map((use, i) => {
          const [b, rows] = [use.getBoundingClientRect(), group.dataset.rows.split(",")];
          return [b.x + b.width / 2, b.y + b.height / 2, +group.dataset.series, +rows[i]]; }))""",
    )
    return [(x, y, names[series], row) for x, y, series, row in found]


def looks(tab):
    """Series in the order of their colours: unpruned is no part of the legend."""
    shown = tab.eval_on_selector_all(".legend button", "all => all.map(e => [+e.dataset.series, e.title])")
    return [{"name": dict(shown).get(i, "unpruned")} for i in range(len(shown) + 1)]


def test_pointing_at_a_mark_shows_its_values(tab):
    tab.locator(".drawing.large:visible").scroll_into_view_if_needed()
    rows, tip = data(tab, "plots")["rows"], tab.locator(".plotted .tip")
    found = set()
    for left in (0, 9999):  # a phone has to be scrolled
        tab.locator(".drawing.large:visible").evaluate("(e, left) => { e.scrollLeft = left; }", left)
        for x, y, name, row in marks(tab, ".drawing.large"):
            if not 12 <= x <= tab.viewport_size["width"] - 12:
                continue
            tab.mouse.move(x, y)
            assert tip.is_visible()
            title, score = tip.inner_text().split("\n")[0], tab.inner_text(".plotted .tip dd >> nth=0")
            assert rows[row]["series"] == name
            assert name in title
            assert score == rows[row]["texts"]["macro"]
            assert "samples" in tip.inner_text()
            found.add(row)
            box = tip.bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= tab.viewport_size["width"]
            lit = "all => new Set(all.filter(e => !e.classList.contains('faint')).map(e => e.dataset.series)).size"
            assert tab.eval_on_selector_all(".plotted [data-series]", lit) == 1  # in every plot and in the legend
    assert found >= {i for i, row in enumerate(rows) if row["series"] != "unpruned"}
    tab.mouse.move(0, 0)
    assert not tip.is_visible()


def test_lines_go_from_mark_to_mark(tab):
    """Every end of a line is a mark of its series; marks stand where their numbers say, whatever lies there already."""
    drawn = marks(tab, ".drawing.large")
    lines = tab.eval_on_selector_all(
        ".drawing.large:not([hidden]) g[data-series]:not(.marks)",
        """all => all.filter(e => e.children.length === 1 && e.firstElementChild.tagName === "path"
            && /^M[^ML]*L[^ML]*$/.test(e.firstElementChild.getAttribute("d").replace(/\\n/g, "").trim())
            && e.firstElementChild.getBoundingClientRect().width > 2)
          .map(e => { const b = e.firstElementChild.getBoundingClientRect();
            return [+e.dataset.series, b.left, b.right]; })""",
    )
    names = [look["name"] for look in looks(tab)]
    assert {names[series] for series, _, _ in lines} >= {"btp", "random"}
    for series, left, right in lines:
        ends = [x for x, _, name, _ in drawn if name == names[series]]
        assert min(abs(x - left) for x in ends) < 2
        assert min(abs(x - right) for x in ends) < 2
    rows = [row for row in data(tab, "plots")["rows"] if row["series"] != "unpruned"]
    tokens = {row["texts"]["tokens_avg"] for row in rows}
    assert len({round(x, 1) for x, _, name, _ in drawn if name != "unpruned"}) == len(tokens)  # none is moved


def test_what_is_cut_fades(tab):
    """The bar of sections on a phone; nothing fades once it is at its end. The table of results is never cut."""
    for button in tab.locator("#groups button[aria-pressed=false]").all():
        button.click()
    assert "cut-right" not in tab.locator("#table .scroll").get_attribute("class")
    phone, bar = tab.viewport_size["width"] < 500, tab.locator("nav")
    assert ("cut-right" in (bar.get_attribute("class") or "")) == phone
    bar.evaluate("e => { e.scrollLeft = e.scrollWidth; }")
    tab.wait_for_function("!document.querySelector('nav').classList.contains('cut-right')")
    tab.reload()


def test_arrow_keys_go_from_mark_to_mark(tab):
    tab.focus(".drawing.large:not([hidden])")
    said, tip = [], tab.locator(".plotted .tip")
    for _ in range(8):
        tab.keyboard.press("ArrowRight")
        said.append(tip.inner_text())
    assert len(set(said)) == 8
    assert "no image" in said[0]  # the cheapest
    tab.keyboard.press("Escape")
    assert not tip.is_visible()


def test_another_price_or_score_is_drawn(tab):
    before = marks(tab, ".drawing.large")
    tab.select_option("select[name=price]", "prefill_ratio")
    tab.select_option("select[name=score]", "reading")
    assert visible(tab, ".drawing.large") == 1
    assert visible(tab, ".drawing.abilities") == 1
    after = marks(tab, ".drawing.large")
    assert [m[2:] for m in after if m[2] != "unpruned"] == [m[2:] for m in before if m[2] != "unpruned"]
    assert [m[:2] for m in after] != [m[:2] for m in before]
    words = tab.locator(".drawing.large:visible").text_content()
    assert "reading accuracy, %" in words
    assert "prefill time" in words
    tab.reload()


def test_every_ability_has_a_panel(tab):
    words = tab.locator(".drawing.abilities:visible").text_content()
    assert all(name in words for name in ("presence", "counting", "digit", "describe"))
    tab.locator(".drawing.abilities:visible").scroll_into_view_if_needed()
    x, y, name, row = next(m for m in marks(tab, ".drawing.abilities") if 0 <= m[0] <= tab.viewport_size["width"])
    tab.mouse.move(x, y)
    text = tab.inner_text(".plotted .tip")
    assert data(tab, "plots")["rows"][row]["series"] == name
    assert name in text
    assert "presence" in text
    tab.mouse.move(0, 0)


def test_the_legend_hides_and_shows(tab):
    tab.click(".legend button[title=tome]")
    assert "tome" not in {m[2] for m in marks(tab, ".drawing")}
    tab.click(".plotted button[data-show=method]")
    assert {m[2] for m in marks(tab, ".drawing.large")} - {"unpruned"} == {"btp", "tome"}
    tab.click(".plotted button[data-show='method control']")
    assert {m[2] for m in marks(tab, ".drawing.large")} - {"unpruned"} == set(SERIES) - {"unpruned"}


def test_colours_are_those_of_the_page(tab):
    """No colour of its own is left in a drawing: in the dark, ink is light."""
    drawn = tab.eval_on_selector_all(".drawing > svg", "all => all.map(e => e.outerHTML).join()")
    assert not re.findall(r"#[0-9a-f]{6}\b", drawn)
    ink, text = (
        tab.eval_on_selector(f".drawing.large:not([hidden]) {what}", "e => getComputedStyle(e).fill")
        for what in ("[id^=xtick] text", "[id^=ytick] text")
    )
    assert ink != text


def test_every_id_is_there_once(tab):
    ids = tab.eval_on_selector_all(".drawing [id^=m], .drawing [id^=p]", "all => all.map(e => e.id)")
    hashed = [one for one in ids if re.fullmatch(r"[mp][0-9a-f]{10}", one)]
    assert len(hashed) == len(set(hashed)) > 10


def test_one_sample_and_one_budget_at_a_time(tab):
    assert visible(tab, ".same") == 1
    tab.select_option(".sample-pick", index=0)
    shown = "all => all.filter(e => e.offsetParent !== null).map(e => e.querySelector('.who b').textContent)"
    most = tab.eval_on_selector_all(".kept .method", shown)
    assert {"btp", "tome"} <= set(most)  # it opens where most methods stand
    tab.locator(".kept button[data-budget]").nth(1).click()
    low = tab.eval_on_selector_all(".kept .method", shown)
    assert "btp" in low
    assert "tome" not in low
    tab.click(".kept button[data-budget='']")
    every = tab.eval_on_selector_all(".kept .method", shown)
    assert len(every) == 1 + 2 + 3 + 2
    assert tab.locator(".same path.merged").count() == 1
    assert "tinted" in tab.inner_text("#kept-0 .about >> nth=0")
    first, picture = tab.inner_text(".same .id"), tab.get_attribute(".same img", "src")
    tab.click(".kept .next")
    assert tab.inner_text(".same .id") != first
    assert tab.get_attribute(".same img", "src") != picture
    assert tab.get_attribute("#picture-0-0", "href") == tab.get_attribute(".same img", "src")
    tab.click(".kept .previous")
    tab.click(".kept .previous")
    assert tab.evaluate("document.querySelector('.sample-pick').selectedIndex") == 2  # round to the last
    tab.reload()


def test_one_method_and_one_stage_at_a_time(tab, root):
    """What the page draws is what the run's trace says."""
    tab.select_option(".sample-pick", index=1)
    high, low = tab.locator(".kept button[data-budget]").all()[:2]
    high.click()
    tab.select_option(".by-method", "btp")
    assert visible(tab, ".kept .method") == 1
    sites = tab.locator(".by-stage option").all_inner_texts()
    assert sites == ["every stage", "last stage", "llm.layer.2", "llm.layer.6"]
    assert visible(tab, ".kept .frames svg") == 2
    run = read_run(root / "0")
    stages = stage_views(run, "btp", tab.inner_text(".same .id"))
    for stage in stages:
        tab.select_option(".by-stage", label=stage.site)
        assert visible(tab, ".kept .frames svg") == 1
        path = tab.get_attribute(".kept .stays", "d")
        rows = [part.split("h") for part in path.removeprefix("M").split("M")]
        drawn = [(int(at.split()[1]), int(at.split()[0]), int(length.split("v")[0])) for at, length, _ in rows]
        assert [12 * y + x + i for y, x, length in drawn for i in range(length)] == sorted(stage.kept)
    low.click()
    assert tab.locator(".by-stage option").all_inner_texts() == ["every stage", "last stage", "llm.layer.2"]
    tab.select_option(".by-method", "tome")  # not at this budget: all budgets are shown
    assert tab.get_attribute(".kept button[data-budget='']", "aria-pressed") == "true"
    assert visible(tab, ".kept .method") == 1
    tab.reload()


def test_settings_that_differ(tab):
    keys = tab.locator("#differing tbody th").all_inner_texts()
    assert keys == ["pruner.name", "limit", "trainer.batch"]
    assert visible(tab, "#differing tbody tr") == 3
    tab.select_option("#settings .one", "1")
    tab.select_option("#settings .other", "3")
    assert tab.locator("#differing tbody tr:visible th").all_inner_texts() == ["pruner.name"]
    assert tab.locator("#differing tbody tr:visible td:visible").all_inner_texts() == ["btp", "tome"]
    tab.select_option("#settings .other", "1")
    assert tab.inner_text("#alike") == "These two do not differ in any setting."
    tab.reload()


def test_runs_say_what_to_mind_and_where_their_report_is(tab, root, comparison):
    assert "not inert: logits differ by up to 0.5" in tab.inner_text("#run-2 .checks .bad")
    assert "stages of btp moved 2 layers towards the input" in tab.inner_text("#run-2 .checks .note")
    assert "Stages moved towards the input to meet the budget: btp at 48.2 (2 layers)." in tab.inner_text("#summary")
    link = tab.get_attribute("#run-1 h3 a", "href")
    assert link == "../../0/report.html"
    assert (comparison.parent / link).resolve() == (root / "0/report.html").resolve()
    assert tab.locator("#results a.out").first.get_attribute("href") == link
    assert tab.locator("#run-3 h3 a").count() == 0  # it has none


def test_an_answer_is_right_or_wrong(tab):
    tab.click(".kept button[data-budget='']")
    found = tab.eval_on_selector_all(
        ".same .method .verdict", "all => all.map(e => [e.getAttribute('aria-label'), e.textContent])"
    )
    assert {tuple(m) for m in found} <= {("right", "✓"), ("wrong", "✗"), ("partly", "0.40")}
    assert len(found) == 8
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
