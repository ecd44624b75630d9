"""Which run folders count as finished."""

import json

import pytest

from btp.results.status import ANSWERED, COSTED, is_finished


def written(folder, names, phases, state="finished"):
    (folder / "run.json").write_text(json.dumps({"state": state, "phases": phases}))
    for name in names:
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(("names", "phases"), [(ANSWERED, {"samples": 1.0}), (COSTED, {"load": 1.0})])
def test_a_run_that_lacks_what_readers_need_is_computed_again(tmp_path, names, phases):
    """Whoever deletes a broken file, as a message tells them to, gets it anew."""
    folder = written(tmp_path, names, phases)
    assert is_finished(folder)
    for name in names:
        (folder / name).unlink()
        assert not is_finished(folder), name
        (folder / name).touch()
    assert is_finished(folder)
    assert not is_finished(written(tmp_path, names, phases, "failed"))


def test_no_run_is_not_finished(tmp_path):
    assert not is_finished(tmp_path)
    (tmp_path / "run.json").write_text("")
    assert not is_finished(tmp_path)
