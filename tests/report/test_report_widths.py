"""No column of a table of results is cut off, however wide the window; a heading stands above its cells."""

import pytest
from pages import shown
from sample_run import ARMS, BLIND, SHRUNK, of, write_run

from btp.report.comparison.compare import compare
from btp.report.pages.run_page import write_report

pytestmark = pytest.mark.long

NINE = (*"abcdef", "digit", "number", "describe")
WIDTHS = (1900, 1400, 1280, 800, 390)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A report of five arms, and a comparison of three methods with all controls at two budgets."""
    root = tmp_path_factory.mktemp("wide")
    few = {"samples": 18, "overlays": 0, "abilities": NINE}
    report = write_report(write_run(root / "run", **few, arms=(*ARMS, SHRUNK, BLIND)))
    for name in ("btp", "dart", "fastv"):
        for keep in (0.5, 0.25):
            stages = [(f"llm.layer.{len(name) % 3}", keep)]
            write_run(root / f"sweep/{name}{keep}", **few, name=name, arms=of(name, SHRUNK, BLIND), stages=stages)
    return {"report": report, "comparison": compare([root / "sweep"], [], root / "out")[1][0]}


@pytest.fixture(params=[(name, width) for name in ("report", "comparison") for width in WIDTHS], scope="module")
def tab(request, browser, pages):
    name, width = request.param
    with shown(browser, pages[name], (width, 900)) as tab:
        yield tab


def sides(tab):
    """Per row, the headings' first: [left, right, top, bottom] of every cell that is shown; and those of the box."""
    return tab.evaluate(
        """() => {
          const at = (e) => { const b = e.getBoundingClientRect(); return [b.left, b.right, b.top, b.bottom]; };
          const rows = [...document.getElementById("results").rows].slice(1);
          return [rows.map((row) => [...row.cells].filter((c) => !c.hidden).map(at)),
            at(document.querySelector("#table .scroll"))]; }"""
    )


@pytest.mark.parametrize("every", [False, True])
def test_no_column_is_cut_off(tab, every):
    """As it opens, and with all groups of columns that a reader may ask for."""
    for button in tab.locator("#groups button[aria-pressed=false]").all() if every else ():
        button.click()
    box = tab.locator("#table .scroll")
    assert box.evaluate("e => e.scrollWidth <= e.clientWidth")
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    rows, (left, right, *_) = sides(tab)
    for row in rows:
        assert all(left - 1 <= x0 < x1 <= right + 1 for x0, x1, *_ in row)


def test_a_heading_stands_above_its_cells(tab):
    (heads, *rows), _ = sides(tab)
    for row in rows:
        assert [x[:2] for x in row] == [pytest.approx(x[:2], abs=1) for x in heads]


def test_no_cell_lies_on_another(tab):
    for row in sides(tab)[0]:
        for i, (x0, x1, y0, y1) in enumerate(row):
            for a0, a1, b0, b1 in row[:i]:
                assert x1 <= a0 + 1 or a1 <= x0 + 1 or y1 <= b0 + 1 or b1 <= y0 + 1


def test_no_text_hangs_out_of_its_cell(tab):
    wide = tab.eval_on_selector_all(
        "#results tbody td",
        "all => all.filter(e => !e.hidden && e.scrollWidth > e.clientWidth + 2).map(e => e.innerText)",
    )
    assert wide == []


def test_costs_are_shown_from_the_start(tab):
    shown = "all => all.filter(e => e.offsetParent !== null && e.dataset.group === 'Cost').length"
    assert tab.eval_on_selector_all("#results tbody tr:first-child td", shown) >= 4
    assert tab.get_attribute("#groups button[data-group=Cost]", "aria-pressed") == "true"
