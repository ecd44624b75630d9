"""A sweep whose files a full disk or a power cut broke says so, and goes on."""

import json

import pytest

from btp.runner.sweeps.cells import FINISHED, OPEN, Cells
from btp.runner.sweeps.summary import Sweep
from btp.runner.workers.launch import Outcome


@pytest.fixture
def cells(tmp_path):
    """Two of two cells, both finished."""
    cells = Cells(tmp_path / "sweep")
    cells.open(["-m", "budget.share=0.5,0.4"], planned=["budget.share=0.5", "budget.share=0.4"])
    for number, share in enumerate((0.5, 0.4)):
        with cells.running(number, f"budget.share={share}") as note:
            note.outcome = Outcome(0, folder=str(tmp_path / f"run{number}"))
    return cells


@pytest.mark.parametrize("content", ["", '{"number": 1, "wor', "[]"])
def test_a_broken_cell_is_open_and_begins_anew(cells, content):
    (cells.folder / "0001.json").write_text(content)
    fine, broken = cells.read()
    assert (fine.state, broken.state, broken.words) == (FINISHED, OPEN, "budget.share=0.4")
    assert "0001.json is broken; resume writes it anew" in broken.reason
    assert Sweep(cells.sweep).status().row_count == 2
    with cells.running(1, "budget.share=0.4") as note:
        note.outcome = Outcome(0)
    assert [cell.state for cell in cells.read()] == [FINISHED, FINISHED]


def test_a_cell_of_a_newer_release(cells):
    """What it notes beyond is left alone."""
    file = cells.folder / "0000.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"colour": "blue"}))
    assert cells.read()[0].state == FINISHED


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_a_broken_command_says_what_to_do(cells, content):
    (cells.sweep / "sweep.json").write_text(content)
    with pytest.raises(ValueError, match=r"sweep\.json is broken\. Delete it .* hydra\.sweep\.dir="):
        cells.command()
    assert cells.study() is None
