"""A sweep whose files a full disk or a power cut broke says so, and goes on."""

import json

import pytest

from btp.runner.sweeps.cells import DIED, FINISHED, OPEN, Cells
from btp.runner.sweeps.summary import Sweep
from btp.runner.workers.launch import Outcome
from btp.sweep import main


@pytest.fixture
def cells(tmp_path):
    """Two of two cells, both finished."""
    cells = Cells(tmp_path / "sweep")
    cells.open(["-m", "budget.share=0.5,0.4"], planned=["budget.share=0.5", "budget.share=0.4"])
    for number, share in enumerate((0.5, 0.4)):
        with cells.running(number, f"budget.share={share}") as note:
            note.outcome = Outcome(0, folder=str(tmp_path / f"run{number}"))
    return cells


WHOLE = {"number": 1, "words": "budget.share=0.4", "state": "finished", "folder": None, "host": "here", "pid": 7}
ODD = {
    "number": "1",
    "words": ["a"],
    "state": "done",
    "folder": 3,
    "host": 4,
    "pid": "7",
    "starts": "two",
    "began": "x",
}


@pytest.mark.parametrize(
    "content",
    ["", '{"number": 1, "wor', "[]", "[" * 9999, *(json.dumps(WHOLE | {key: value}) for key, value in ODD.items())],
)
def test_a_broken_cell_is_open_and_begins_anew(cells, content):
    (cells.folder / "0001.json").write_text(content)
    fine, broken = cells.read()
    assert (fine.state, broken.state, broken.words) == (FINISHED, OPEN, "budget.share=0.4")
    assert broken.reason.startswith("0001.json ")
    assert broken.reason.endswith("resume writes it anew")
    assert Sweep(cells.sweep).status().row_count == 2
    with cells.running(1, "budget.share=0.4") as note:
        note.outcome = Outcome(0)
    assert [cell.state for cell in cells.read()] == [FINISHED, FINISHED]


def test_a_cell_of_a_newer_release(cells):
    """What it notes beyond is left alone."""
    file = cells.folder / "0000.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"colour": "blue"}))
    assert cells.read()[0].state == FINISHED


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"words": "-m"}', '{"words": [3]}', "[" * 9999])
def test_a_broken_command_says_what_to_do(cells, content):
    (cells.sweep / "sweep.json").write_text(content)
    with pytest.raises(ValueError, match=r"sweep\.json .*\. Delete it .* hydra\.sweep\.dir="):
        cells.command()
    assert cells.study() is None


@pytest.mark.parametrize("content", ["", "{}", "[3]", '["a", null]'])
@pytest.mark.parametrize("do", ["status", "table"])
def test_a_broken_plan_is_one_message(cells, capsys, content, do):
    (cells.sweep / "planned.json").write_text(content)
    assert main([do, str(cells.sweep)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {cells.sweep / 'planned.json'} ")
    assert "Delete it and give the sweep's own command again" in said


def test_files_that_are_no_cells_are_left_alone(cells):
    (cells.folder / "notes.json").write_text("{}")
    assert [cell.state for cell in cells.read()] == [FINISHED, FINISHED]


def test_a_running_cell_that_does_not_say_since_when_has_died(cells):
    file = cells.folder / "0000.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"state": "running", "began": ""}))
    assert cells.read()[0].state == DIED


def test_a_run_that_is_gone_is_left_out(cells, tmp_path, capsys):
    """Both are, here: nothing is left to compare, and nothing but the message is said."""
    assert Sweep(cells.sweep).end() == 1
    said = capsys.readouterr().err
    assert f"the folder of this finished run is gone: {tmp_path / 'run0'}" in said
