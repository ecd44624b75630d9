"""The notebooks run from their first cell to their last, and what is committed with them is what they show."""

import os
import re
from collections import Counter
from pathlib import Path

import nbformat
import pytest

from docs.making.notebooks import HERE, KEPT, executed

NAMES = sorted(path.name for path in HERE.glob("*.ipynb"))
LINES = 20  # longest cell of code
SAME = 0.75  # of an output's words and numbers; on another CPU an answer or two of eighteen may differ
BYTES = 400_000


def code(book):
    """Its cells of code."""
    return [cell for cell in book.cells if cell.cell_type == "code"]


def text(output):
    """What an output says as text."""
    return output.get("text") or (output.get("data") or {}).get("text/plain", "")


def said(book):
    """All that a notebook printed or showed as text."""
    return "\n".join(text(output) for cell in code(book) for output in cell.outputs)


def pictures(book):
    """How many pictures it shows."""
    return sum("image/png" in (output.get("data") or {}) for cell in code(book) for output in cell.outputs)


def alike(one, other):
    """Share of the words of two outputs that both have."""
    a, b = Counter(text(one).split()), Counter(text(other).split())
    return (a & b).total() / max(a.total(), b.total(), 1)


def stale(committed, fresh):
    """Numbers of the cells whose committed outputs are not those of a fresh run."""
    wrong = []
    for number, (old, new) in enumerate(zip(code(committed), code(fresh), strict=True)):
        kinds = [[sorted(output.get("data") or {}) for output in cell.outputs] for cell in (old, new)]
        if kinds[0] != kinds[1] or any(alike(*pair) < SAME for pair in zip(old.outputs, new.outputs, strict=True)):
            wrong.append(number)
    return wrong


def ran(name):
    """A fresh run of a notebook, which shows what is committed."""
    fresh = executed(HERE / name)
    assert stale(nbformat.read(HERE / name, as_version=4), fresh) == [], f"run python -m docs.making.notebooks {name}"
    return fresh


def test_there_are_five():
    """And the page that lists them names each."""
    assert [name[:2] for name in NAMES] == ["01", "02", "03", "04", "05"]
    assert re.findall(r"\]\((\w+\.ipynb)\)", (HERE / "README.md").read_text()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_tidy(name):
    """Valid, prose between short cells, all that they show, no warnings and no paths of anybody's machine."""
    path = HERE / name
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert len(book.cells) - len(code(book)) >= 3
    assert max(cell.source.count("\n") + 1 for cell in code(book)) <= LINES
    assert [cell.execution_count for cell in code(book)] == list(range(1, len(code(book)) + 1))
    outputs = [output for cell in code(book) for output in cell.outputs]
    assert outputs
    assert all(set(output.get("data") or {}) <= set(KEPT) and output.get("name") != "stderr" for output in outputs)
    assert str(Path.home()) not in said(book)
    assert "/tmp" not in said(book)
    assert path.stat().st_size < BYTES


def test_an_old_output_is_seen():
    """A number or two may differ, a table or a picture may not."""
    book, other = (nbformat.read(HERE / "02_inside_a_stage.ipynb", as_version=4) for _ in range(2))
    assert stale(book, other) == []
    shown = [i for i, cell in enumerate(code(other)) if cell.outputs]
    code(other)[shown[0]].outputs[0].data["text/plain"] = "('Another', 7)"
    code(other)[shown[-1]].outputs = []
    drawn = next(i for i in shown if "image/png" in (code(other)[i].outputs[0].get("data") or {}))
    del code(other)[drawn].outputs[0].data["image/png"]
    assert stale(book, other) == sorted({shown[0], drawn, shown[-1]})


def test_a_warning_is_refused(tmp_path):
    """A reader of the site would see it."""
    cell = nbformat.v4.new_code_cell("import warnings; warnings.warn('late')")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "a.ipynb")
    with pytest.raises(ValueError, match=r"a\.ipynb prints to stderr:\n.*late"):
        executed(tmp_path / "a.ipynb")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))


@pytest.mark.slow
def test_first_look():
    """Where there is no run it makes one."""
    book = ran("01_first_look.ipynb")
    assert re.search(r"btp\s+llm\.layer\.1\s+144\.0\s+21\.0", said(book))
    assert re.search(r"btp\s+\d+%\s+\d+% to \d+%\s+18", said(book))
    assert pictures(book) == 1


@pytest.mark.slow
def test_inside_a_stage():
    """Two stages of BTP fire, and both answers are given."""
    book = ran("02_inside_a_stage.ipynb")
    shown = said(book)
    assert "('llm.layer.1', (144,), (80,))" in shown
    assert "('llm.layer.5', (80,), (24,))" in shown
    assert "[144, 80, 80, 80, 80, 24, 24, 24] mean 67.0 of 144" in shown
    assert "without: top right" in shown
    assert pictures(book) == 4


@pytest.mark.slow
def test_write_your_own_pruner():
    """The method of the notebook keeps the contract, and is compared at equal tokens."""
    shown = said(ran("03_write_your_own_pruner.ipynb"))
    table = shown[shown.index("score   tokens") :].splitlines()[2:6]
    rows = {
        name: re.match(rf"{name} +([\d.]+) +([\d.]+) +[\d.]+ to [\d.]+", line)
        for line in table
        for name in ("unpruned", "stand out", "btp", "random")
        if line.startswith(name)
    }
    scores = {name: (float(row[1]), float(row[2])) for name, row in rows.items()}
    assert set(scores) == {"unpruned", "stand out", "btp", "random"}
    assert scores["unpruned"][0] > scores["random"][0]
    assert scores["stand out"][1] == scores["btp"][1] == scores["random"][1] != scores["unpruned"][1]


@pytest.mark.slow
def test_read_a_sweep():
    """Three cells, three run folders, a table with intervals and a front."""
    book = ran("04_read_a_sweep.ipynb")
    shown = said(book)
    assert shown.count("finished") == 3
    assert re.search(r"btp .*\d \(0\.\d\d to [01]\.\d\d\)", shown)
    assert "comparison.html" in shown
    assert pictures(book) == 1


@pytest.mark.slow
def test_slots_of_the_cache():
    """As many slots as asked in every layer, in every step, and behind a pruned prefill."""
    book = ran("05_slots_of_the_cache.ipynb")
    shown = said(book)
    assert f"held in layer 0: {(32,) * 8}" in shown
    assert f"behind each forward: {[32.0] * 4}" in shown or f"behind each forward: {[32.0] * 3}" in shown
    assert f"slots held: {[32] * 8}" in shown
    assert pictures(book) == 1
