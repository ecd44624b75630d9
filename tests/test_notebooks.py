"""The notebooks run from their first cell to their last, and are committed without outputs."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from jobs import job
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parents[1] / "notebooks"
NAMES = sorted(path.name for path in HERE.glob("*.ipynb"))
CELL_S = 120  # longest that a cell may take where others use the machine too
LINES = 20  # longest cell of code


def ran(name, folder):
    """The notebook as it stands behind a run in `folder`."""
    book = nbformat.read(HERE / name, as_version=4)
    NotebookClient(book, timeout=CELL_S, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    return book


def said(book):
    """All that a notebook printed or showed as text."""
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(o.get("text") or (o.get("data") or {}).get("text/plain", "") for o in outputs)


def pictures(book):
    """How many pictures it shows."""
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    return sum("image/png" in (output.get("data") or {}) for output in outputs)


def test_there_are_four():
    assert [name[:2] for name in NAMES] == ["01", "02", "03", "04"]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_tidy(name):
    """Valid, with prose between short cells, and nothing of anybody's last run in it."""
    book = nbformat.read(HERE / name, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert len(book.cells) - len(code) >= 3
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert max(cell.source.count("\n") + 1 for cell in code) <= LINES


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))


def test_first_look(tmp_path):
    """Of a run in the folder that it is started in."""
    job(tmp_path / "outputs", "schedule=uniform", "budget.share=0.4", "limit=9", "overlays=1", "cost.enabled=false")
    book = ran("01_first_look.ipynb", tmp_path)
    assert re.search(r"btp\s+llm\.layer\.2\s+144\.0\s+49\.0", said(book))
    assert pictures(book) == 1


def test_inside_a_stage(tmp_path):
    """Two stages of BTP fire, and both answers are given."""
    book = ran("02_inside_a_stage.ipynb", tmp_path)
    shown = said(book)
    assert "('llm.layer.1', (144,), (80,))" in shown
    assert "('llm.layer.5', (80,), (24,))" in shown
    assert "[144, 80, 80, 80, 80, 24, 24, 24] mean 67.0 of 144" in shown
    assert "without: top right" in shown
    assert pictures(book) == 4


def test_write_your_own_pruner(tmp_path):
    """The method of the notebook keeps the contract, and is compared at equal tokens."""
    shown = said(ran("03_write_your_own_pruner.ipynb", tmp_path))
    table = shown[shown.index("score   tokens") :].splitlines()[2:6]
    rows = {line.rsplit(maxsplit=2)[0]: line.rsplit(maxsplit=2)[1:] for line in table}
    assert set(rows) == {"unpruned", "stand out", "btp", "random"}
    assert float(rows["unpruned"][0]) > float(rows["random"][0])
    assert rows["stand out"][1] == rows["btp"][1] == rows["random"][1] != rows["unpruned"][1]


@pytest.mark.slow
def test_read_a_sweep(tmp_path):
    """Three cells, three run folders, a table and a front."""
    book = ran("04_read_a_sweep.ipynb", tmp_path)
    shown = said(book)
    assert shown.count("finished") == 3
    assert "comparison.html" in shown
    assert pictures(book) == 1
