"""The table of published figures is what the formulas give today, and says why where they differ."""

import pytest

from btp.report.text.real_shapes import DATA
from experiments.cost.document import DOCS, DOCUMENTS, replaced, report_data
from experiments.cost.published import TOLERANCE, documents, rows
from experiments.cost.schedules import falling, layers

FOUND = list(rows())


def test_the_documents_are_up_to_date():
    """`python -m experiments.cost.published` would change nothing, and reports have what was measured."""
    assert DATA.read_text() == report_data()
    assert documents(FOUND) == {name: (DOCS / name).read_text() for name in DOCUMENTS}


def test_every_difference_is_explained():
    """A row that is off, or has no schedule, says why."""
    silent = [row for row in FOUND if (row.off is None or abs(row.off) > TOLERANCE) and not row.why]
    assert not silent


def test_most_figures_come_out():
    """Of those with a schedule at least four in five; with a figure each of the commonest methods."""
    known = [row for row in FOUND if row.off is not None]
    assert sum(abs(row.off) <= TOLERANCE for row in known) >= 0.8 * len(known)
    said = " ".join(f"{row.paper} {row.what}" for row in FOUND)
    for method in (
        "FastV",
        "PyramidDrop",
        "VTW",
        "SparseVLM",
        "DART",
        "DivPrune",
        "FasterVLM",
        "VisionZip",
        "AIM",
        "BTP",
    ):
        assert method in said


@pytest.mark.parametrize(
    ("paper", "what", "model", "ours"),
    [
        ("PyramidDrop", "unpruned", "LLaVA-1.5-7B", 3.817),
        ("FastV", "unpruned", "LLaVA-1.5-7B", 99.33),
        ("AIM", "unpruned", "LLaVA-1.5-7B", 8.179),
        ("FasterVLM", "FasterVLM, 95 %", "LLaVA-NeXT-7B", 3.80),
        ("LVPruning", "LVPruning, 0.6", "LLaVA-1.5-7B", 3.971),
        ("ToMe", "ToMe", "DeiT-S", 3.416),
    ],
)
def test_one_of_each_convention(paper, what, model, ours):
    """Worked out apart from the code."""
    row = next(r for r in FOUND if r.paper.startswith(paper) and r.what == what and r.model == model)
    assert row.ours == pytest.approx(ours, rel=6e-4)


def test_schedules():
    """Written short, and AIM's scheduler: full up to 2, then thirds of 10 rounded down, none from 4 on."""
    assert layers("2x576 1x0") == [576, 576, 0]
    assert falling(10, 2, 5, 7) == [10, 10, 6, 3, 0, 0, 0]


def test_markers():
    """What stands between them is replaced, all else stays; a missing one is named."""
    text = "a\n<!-- x: generated -->\nold\n<!-- x: end -->\nb"
    assert replaced(text, "x", "new", "cost.md") == "a\n<!-- x: generated -->\nnew\n<!-- x: end -->\nb"
    with pytest.raises(ValueError, match=r"docs/cost\.md has no <!-- y: generated --> with <!-- y: end --> behind it"):
        replaced(text, "y", "new", "cost.md")
