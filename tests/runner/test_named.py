"""Which run folders count as finished."""

import json

import pytest

from btp.results.status import ANSWERED, COSTED, is_finished, lacks_report_alone

ENDS = {".html": "<html></html>", ".parquet": "PAR1 rows PAR1", ".json": "{}", ".yaml": "a: 1"}


def write(folder, name):
    (folder / name).write_text(ENDS[(folder / name).suffix])


def written(folder, names, phases, state="finished"):
    (folder / "run.json").write_text(json.dumps({"state": state, "phases": phases}))
    for name in names:
        write(folder, name)
    return folder


@pytest.mark.parametrize(("names", "phases"), [(ANSWERED, {"samples": 1.0}), (COSTED, {"load": 1.0})])
def test_a_run_that_lacks_what_readers_need_is_computed_again(tmp_path, names, phases):
    """Whoever deletes a broken file, as a message tells them to, gets it anew."""
    folder = written(tmp_path, names, phases)
    assert is_finished(folder)
    for name in names:
        (folder / name).unlink()
        assert not is_finished(folder), name
        write(folder, name)
    assert is_finished(folder)
    assert not is_finished(written(tmp_path, names, phases, "failed"))


def test_no_run_is_not_finished(tmp_path):
    assert not is_finished(tmp_path)
    (tmp_path / "run.json").write_text("")
    assert not is_finished(tmp_path)


@pytest.mark.parametrize("name", ANSWERED)
@pytest.mark.parametrize("share", [0, 0.5])
def test_a_file_that_was_cut_off_does_not_count(tmp_path, name, share):
    """As a full disk or a power cut leaves it; a report alone can be drawn from the rest."""
    folder = written(tmp_path, ANSWERED, {"samples": 1.0})
    whole = (folder / name).read_text()
    (folder / name).write_text(whole[: int(len(whole) * share)])
    if name != "config.yaml" or not share:  # half a line of YAML is a line of YAML
        assert not is_finished(folder)
        assert lacks_report_alone(folder) == (name == "report.html")


def test_a_state_that_holds_no_keys_is_none(tmp_path):
    (tmp_path / "run.json").write_text("[1]")
    assert not is_finished(tmp_path)
